/** The answers to one cell: its type and how sure that is, nearest reference cells, its genes, its row of the file. */
import { useEffect, useState } from "preact/hooks";
import * as api from "./api";
import { formatNumber } from "./colouring";
import { ProblemCard } from "./ProblemCard";
import type { CellAnswer, CellDetails, Neighbour } from "./types";

const SHOWN = 6;
const TITLES: Record<string, string> = { annotate: "Predicted by the model", map: "By the reference", proteins: "Predicted proteins" };
const percent = (share: number): string => `${(100 * share).toFixed(share > 0.0995 ? 0 : 1)} %`;

interface Props {
  session: string;
  row: number;
  onGene: (gene: string) => void;
  onSummary: (text: string) => void;
}

export function CellPanel({ session, row, onGene, onSummary }: Props) {
  const [details, setDetails] = useState<CellDetails | null>(null);
  const [problem, setProblem] = useState<unknown>(null);
  useEffect(() => {
    if (row < 0) return;
    let current = true;
    setProblem(null);
    api.cell(session, row).then(
      (found) => {
        if (!current) return;
        setDetails(found);
        onSummary(summary(found));
      },
      (reason) => current && setProblem(reason),
    );
    return () => {
      current = false;
    };
  }, [session, row]);

  if (row < 0) {
    return (
      <div class="empty">
        <p>Click a cell on the map to see its answer.</p>
        <p class="faint">Or put the focus on the map and press Enter; shift and the arrow keys go from cell to cell.</p>
      </div>
    );
  }
  if (problem) return <ProblemCard problem={problem} />;
  if (!details || details.row !== row) return <p class="faint waiting">Asking the model about this cell …</p>;
  return (
    <article class="cell">
      <h2 class="name">{details.name}</h2>
      {Object.entries(details.answers).map(([task, { cell, header, trouble }]) => (
        <section key={task} aria-label={TITLES[task] ?? task}>
          <h3>{TITLES[task] ?? task}</h3>
          {trouble && <p class="faint">{`${trouble.detail} ${trouble.remedy}`}</p>}
          {cell && <Answer cell={cell} header={header ?? {}} />}
        </section>
      ))}
      <section aria-label="Genes that it expresses most">
        <h3>Genes it expresses most</h3>
        <p class="chips">
          {details.top_genes.map(({ gene, expression }) => (
            <button type="button" class="chip" key={gene} title={`${gene}: ${formatNumber(expression)}. Colour the map by it.`} onClick={() => onGene(gene)}>
              {gene}
            </button>
          ))}
        </p>
      </section>
      {details.columns.length > 0 && (
        <section aria-label="From the file">
          <h3>From the file</h3>
          <dl>
            {details.columns.map(({ name, value }) => (
              <div key={name}>
                <dt>{name}</dt>
                <dd>{value === null ? "–" : typeof value === "number" ? formatNumber(value) : value}</dd>
              </div>
            ))}
          </dl>
        </section>
      )}
    </article>
  );
}

function summary(details: CellDetails): string {
  const cell = details.answers.annotate?.cell ?? details.answers.map?.cell;
  if (!cell?.label) return `${details.name}: no answer`;
  const sure = cell.probability == null ? "" : `, ${percent(cell.probability)}`;
  return `${details.name}: ${cell.label}${sure}${cell.status ? `, ${cell.status}` : ""}`;
}

function Answer({ cell, header }: { cell: CellAnswer; header: Record<string, unknown> }) {
  if (cell.values) return <Proteins values={cell.values} header={header} />;
  if (cell.label == null) return <p class="faint">No answer: it expresses no gene that the model knows.</p>;
  const all = cell.probabilities ?? Object.fromEntries((cell.candidates ?? []).map((one) => [one.label, one.probability]));
  const shares = Object.entries(all).sort((one, other) => other[1] - one[1]);
  const fitting = (cell.fitting ?? cell.set ?? []).filter((label) => label !== cell.label);
  return (
    <>
      <p class="verdict">
        <b>{cell.label}</b>
        {cell.probability != null && <span class="number">{percent(cell.probability)}</span>}
        {cell.status && <span class={`tag ${cell.status}`}>{cell.status}</span>}
      </p>
      {cell.status === "ambiguous" && fitting.length > 0 && (
        <p class="faint">
          {fitting.join(", ")} {fitting.length === 1 ? "fits" : "fit"} as well{cell.common_ancestor ? `; all are ${cell.common_ancestor}` : ""}.
        </p>
      )}
      {cell.status === "unassigned" && <p class="faint">It lies so far from the cells of this type that its own type may not have been learned.</p>}
      <Bars rows={shares.slice(0, SHOWN).map(([name, share]) => ({ name, share, text: percent(share) }))} />
      {cell.neighbours && cell.neighbours.length > 0 && <Neighbours cells={cell.neighbours} />}
    </>
  );
}

export function Bars({ rows }: { rows: { name: string; share: number; text: string }[] }) {
  return (
    <ul class="bars">
      {rows.map(({ name, share, text }) => (
        <li key={name}>
          <span class="name" title={name}>
            {name}
          </span>
          <span class="track" aria-hidden="true">
            <span style={{ width: `${Math.min(100 * share, 100)}%` }} />
          </span>
          <span class="number">{text}</span>
        </li>
      ))}
    </ul>
  );
}

function Neighbours({ cells }: { cells: Neighbour[] }) {
  return (
    <table>
      <caption>Nearest reference cells</caption>
      <thead>
        <tr>
          <th scope="col">Cell</th>
          <th scope="col">Type</th>
          <th scope="col">Distance</th>
        </tr>
      </thead>
      <tbody>
        {cells.map((near) => (
          <tr key={near.ref_id} title={[near.dataset, near.batch].filter(Boolean).join(", ")}>
            <td>{near.ref_id}</td>
            <td>{near.label}</td>
            <td class="number">{near.distance.toFixed(3)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Proteins({ values, header }: { values: number[]; header: Record<string, unknown> }) {
  const proteins = (header.proteins ?? []) as { name: string; confidence: number }[];
  const most = Math.max(...values.map(Math.abs), 1e-9);
  const rows = proteins.map(({ name }, place) => ({ name, share: Math.max(values[place], 0) / most, text: values[place].toFixed(2) }));
  return <Bars rows={rows.sort((one, other) => other.share - one.share).slice(0, 12)} />;
}
