/** The messages of the service, as serving/explorer writes them. */

export interface Column {
  key: string;
  group: string;
  name: string;
  kind: "category" | "number";
  categories: string[];
  counts: number[];
  low: number | null;
  high: number | null;
  missing: number;
  part_of: string;
}

export interface Finding {
  level: "good" | "note" | "warning";
  title: string;
  detail: string;
}

export type Stage = "upload" | "reading" | "answering" | "layout" | "ready" | "failed";

export interface Model {
  name: string;
  version: string;
  digest: string;
}

export interface Session {
  id: string;
  name: string;
  num_bytes: number;
  received: number;
  stage: Stage;
  done: number;
  total: number;
  model: Model;
  findings: Finding[];
  num_cells: number;
  values: "counts" | "expression";
  columns: Column[];
  layouts: string[];
  answered_by: string[];
  notes: string[];
  trouble: { detail: string; remedy: string } | null;
}

export interface About {
  cytoray: string;
  model: Model;
  labels: string[];
  num_genes: number;
  num_parameters: number;
  context_length: number;
  attached: string[];
  tasks: string[];
  demos: { name: string; about: string }[];
  part_bytes: number;
  max_file_bytes: number;
  max_cells: number;
  max_age_s: number;
}

export interface Neighbour {
  ref_id: string;
  label: string;
  dataset: string;
  batch: string | null;
  distance: number;
}

/** One endpoint's answer to one cell; which members there are depends on the endpoint. */
export interface CellAnswer {
  label?: string | null;
  probability?: number | null;
  probabilities?: Record<string, number> | null;
  status?: string | null;
  fitting?: string[] | null;
  set?: string[] | null;
  common_ancestor?: string | null;
  unseen_p?: number | null;
  candidates?: { label: string; probability: number }[] | null;
  neighbours?: Neighbour[] | null;
  values?: number[] | null;
}

export interface CellDetails {
  row: number;
  name: string;
  answers: Record<
    string,
    { cell?: CellAnswer; header?: Record<string, unknown> | null; trouble?: { detail: string; remedy: string } }
  >;
  top_genes: { gene: string; expression: number }[];
  columns: { group: string; name: string; value: string | number | null }[];
}
