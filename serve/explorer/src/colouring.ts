/** What the map is coloured by, which cells the filters show, and in which order they are drawn. */
import { MUTED, type Theme, hue, ramp, rgb, shapeIndex } from "./palette";
import type { Column } from "./types";

/** A value for each cell: codes of categories or numbers, NaN for a cell without one. */
export interface Colouring {
  key: string;
  title: string;
  group: string;
  kind: "category" | "number";
  values: Float32Array;
  categories: string[];
  counts: number[];
  low: number;
  high: number;
}

export interface Filter {
  colouring: Colouring;
  hidden?: Set<number>;
  low?: number;
  high?: number;
}

const GROUPS: Record<string, string> = {
  annotate: "Predicted by the model",
  embed: "Predicted by the model",
  map: "By the reference",
  proteins: "Predicted proteins",
  obs: "From the file",
  quality: "Quality",
  gene: "Gene expression",
};
const NAMES: Record<string, string> = {
  label: "Cell type",
  probability: "Confidence",
  status: "Assigned or not",
  unseen_p: "Likeness to training cells",
  common_ancestor: "Common ancestor",
  mapping_percentile: "Mapping percentile",
};

export const groupTitle = (column: { group: string; part_of: string }): string =>
  column.part_of === "probabilities" ? "Probability of each type" : (GROUPS[column.group] ?? column.group);

export const columnTitle = (column: Column): string => {
  const own = column.group !== "obs" && !column.part_of ? NAMES[column.name] : undefined;
  const name = own ?? column.name;
  return column.part_of === "probabilities" ? `Probability of ${name}` : name;
};

export function colouringOf(column: Column, values: Float32Array): Colouring {
  const isShare = column.name === "probability" || column.part_of === "probabilities" || column.name === "unseen_p";
  return {
    key: column.key,
    title: columnTitle(column),
    group: groupTitle(column),
    kind: column.kind,
    values,
    categories: column.categories,
    counts: column.counts,
    low: isShare ? 0 : (column.low ?? 0),
    high: isShare ? 1 : (column.high ?? 1),
  };
}

export function colouringOfGene(gene: string, values: Float32Array): Colouring {
  let high = 0;
  for (const value of values) if (value > high) high = value;
  return { key: `gene:${gene}`, title: gene, group: GROUPS.gene, kind: "number", values, categories: [], counts: [], low: 0, high: high || 1 };
}

/** The colours of all slots, each with its shape in place of alpha; the last is for cells without a value. */
export function slotColours(colouring: Colouring, theme: Theme): Uint8Array {
  const isCategory = colouring.kind === "category";
  const count = isCategory ? colouring.categories.length : 256;
  const slots = new Uint8Array(4 * (count + 1));
  for (let slot = 0; slot < count; slot++) {
    slots.set([...rgb(isCategory ? hue(slot, theme) : ramp(slot / (count - 1), theme)), isCategory ? shapeIndex(slot) : 0], 4 * slot);
  }
  slots.set([...rgb(MUTED[theme]), 0], 4 * count);
  return slots;
}

export function colourOf(colouring: Colouring, value: number, theme: Theme): string {
  if (Number.isNaN(value)) return MUTED[theme];
  return colouring.kind === "category" ? hue(value, theme) : ramp((value - colouring.low) / (colouring.high - colouring.low || 1), theme);
}

export function formatValue(colouring: Colouring, value: number): string {
  if (Number.isNaN(value)) return "no value";
  return colouring.kind === "category" ? colouring.categories[value] : formatNumber(value);
}

export function formatNumber(value: number): string {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(3).replace(/\.?0+$/, "");
}

/** Which cells pass all filters. */
export function shownBy(filters: Filter[], numCells: number): Uint8Array {
  const shown = new Uint8Array(numCells).fill(1);
  for (const { colouring, hidden, low = -Infinity, high = Infinity } of filters) {
    const { values } = colouring;
    for (let row = 0; row < numCells; row++) {
      const value = values[row];
      if (Number.isNaN(value)) shown[row] &= hidden?.has(-1) ? 0 : 1;
      else if (hidden ? hidden.has(value) : value < low || value > high) shown[row] = 0;
    }
  }
  return shown;
}

/** Draw high numbers on top; categories in a fixed random order, so that none buries another. */
export function drawingOrder(colouring: Colouring, shown: Uint8Array): { shown: Uint32Array; hidden: Uint32Array } {
  const rows = shuffled(shown.length);
  const visible = rows.filter((row) => shown[row]);
  if (colouring.kind === "number") {
    const values = colouring.values;
    visible.sort((one, other) => (values[one] || 0) - (values[other] || 0));
  }
  return { shown: visible, hidden: rows.filter((row) => !shown[row]) };
}

let shuffle = new Uint32Array(0);
function shuffled(count: number): Uint32Array {
  if (shuffle.length === count) return shuffle;
  shuffle = Uint32Array.from({ length: count }, (_, row) => row);
  let seed = 1;
  for (let row = count - 1; row > 0; row--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const other = seed % (row + 1);
    [shuffle[row], shuffle[other]] = [shuffle[other], shuffle[row]];
  }
  return shuffle;
}
