/** What the model knows of a gene: the effect of perturbing it, its regulators and targets, genes with like vectors. */
import { useEffect, useState } from "preact/hooks";
import * as api from "./api";
import { Bars } from "./CellPanel";
import { Combobox } from "./Combobox";
import { Effect, type Perturbed } from "./Effect";
import { ProblemCard } from "./ProblemCard";

interface Props {
  tasks: string[];
  names: string[];
  gene: string;
  onGene: (gene: string) => void;
  onColour: (gene: string) => void;
  onShift: ((gene: string) => Promise<string>) | null;
}

interface Edge {
  tf: string;
  target: string;
  weight: number;
  sign: number;
}

interface Found {
  near?: { gene: string; cosine: number }[];
  network?: { group: string; regulators: Edge[]; targets: Edge[] };
  effect?: Perturbed;
  troubles: Record<string, unknown>;
}

const NEAR = 12;

async function ask(gene: string, tasks: string[]): Promise<Found> {
  const found: Found = { troubles: {} };
  const attempt = async (task: string, work: () => Promise<void>): Promise<void> => {
    if (tasks.includes(task)) await work().catch((reason: unknown) => void (found.troubles[task] = reason));
  };
  await Promise.all([
    attempt("genes", async () => {
      const answer = await api.ask<{ genes: { neighbours: Found["near"] }[] }>("genes", { genes: [gene], neighbours: NEAR, include_embedding: false });
      found.near = answer.genes[0]?.neighbours;
    }),
    attempt("networks", async () => {
      const answer = await api.ask<{ group: string; genes: { regulators: Edge[]; targets: Edge[] }[] }>("networks", { genes: [gene], num_edges: 10 });
      if (answer.genes[0]) found.network = { group: answer.group, ...answer.genes[0] };
    }),
    attempt("perturb", async () => {
      const answer = await api.ask<{ perturbations: Perturbed[] }>("perturb", { perturbations: [gene], num_top: 16 });
      found.effect = answer.perturbations[0];
    }),
  ]);
  return found;
}

export function GenePanel({ tasks, names, gene, onGene, onColour, onShift }: Props) {
  const [found, setFound] = useState<Found | null>(null);
  useEffect(() => {
    setFound(null);
    if (!gene) return;
    let current = true;
    ask(gene, tasks).then((answer) => current && setFound(answer));
    return () => {
      current = false;
    };
  }, [gene]);
  const link = (name: string) => (
    <button type="button" class="chip" key={name} onClick={() => onGene(name)}>
      {name}
    </button>
  );
  return (
    <article class="gene">
      <Combobox label="Gene" placeholder="Symbol or Ensembl id" names={names} value={gene} onChoose={onGene} />
      {!gene && <p class="empty faint">Choose a gene to see what the model knows of it.</p>}
      {gene && (
        <p>
          <button type="button" class="secondary" onClick={() => onColour(gene)}>
            Colour the map by {gene}
          </button>
        </p>
      )}
      {gene && !found && <p class="faint waiting">Asking the model about {gene} …</p>}
      {found && (
        <>
          {tasks.includes("perturb") && (
            <section aria-label="Perturbation">
              <h2 class="part">If {gene} is perturbed</h2>
              {found.effect ? <Effect effect={found.effect} onGene={onGene} onShift={onShift} /> : <ProblemCard problem={found.troubles.perturb} />}
            </section>
          )}
          {tasks.includes("networks") && (
            <section aria-label="Network">
              <h2 class="part">Regulators and targets</h2>
              {!found.network && <p class="faint">The network does not have this gene.</p>}
              {found.network && (
                <>
                  <Edges title="Regulated by" edges={found.network.regulators} name={(edge) => edge.tf} link={link} />
                  <Edges title="Regulates" edges={found.network.targets} name={(edge) => edge.target} link={link} />
                  <p class="faint small">Cells: {found.network.group}. ↑ raises, ↓ lowers.</p>
                </>
              )}
            </section>
          )}
          {found.near && (
            <section aria-label="Neighbours">
              <h2 class="part">Genes with the most similar vectors</h2>
              <p class="chips">{found.near.map(({ gene: name }) => link(name))}</p>
              <Bars rows={found.near.slice(0, 5).map(({ gene: name, cosine }) => ({ name, share: cosine, text: cosine.toFixed(2) }))} />
            </section>
          )}
        </>
      )}
    </article>
  );
}

function Edges({ title, edges, name, link }: { title: string; edges: Edge[]; name: (edge: Edge) => string; link: (name: string) => preact.JSX.Element }) {
  if (!edges.length) return null;
  return (
    <p class="chips">
      <span class="faint">{title}</span>
      {edges.map((edge) => (
        <span key={name(edge)} class="edge">
          {link(name(edge))}
          <span aria-label={edge.sign < 0 ? "lowers" : edge.sign > 0 ? "raises" : "unsigned"}>{edge.sign < 0 ? "↓" : edge.sign > 0 ? "↑" : "·"}</span>
        </span>
      ))}
    </p>
  );
}
