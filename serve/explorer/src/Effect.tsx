/** The predicted effect of a perturbation: the genes that change most, with intervals, and what the prediction rests on. */
import { useState } from "preact/hooks";
import { ProblemCard } from "./ProblemCard";

export interface Perturbed {
  perturbation: string;
  confidence: number;
  top_genes: { gene: string; delta: number; low: number; high: number }[];
  parts: { target: string; known: boolean; neighbours: { target: string; similarity: number }[] }[];
  method: string;
}

interface Props {
  effect: Perturbed;
  onGene: (gene: string) => void;
  onShift: ((gene: string) => Promise<string>) | null;
}

const ROW = 20;
const [LEFT, WIDTH] = [78, 210];

export function Effect({ effect, onGene, onShift }: Props) {
  const [shift, setShift] = useState<{ text?: string; problem?: unknown; busy?: boolean }>({});
  const most = Math.max(...effect.top_genes.flatMap(({ low, high }) => [Math.abs(low), Math.abs(high)]), 1e-6);
  const x = (value: number): number => LEFT + WIDTH / 2 + (value / most) * (WIDTH / 2);
  const known = effect.parts.filter((part) => part.known).map((part) => part.target);
  const like = effect.parts.flatMap((part) => part.neighbours.map((near) => near.target)).slice(0, 5);
  const show = async (): Promise<void> => {
    setShift({ busy: true });
    try {
      setShift({ text: await onShift!(effect.perturbation) });
    } catch (problem) {
      setShift({ problem });
    }
  };
  return (
    <>
      <p>
        Confidence <b class="number">{effect.confidence.toFixed(2)}</b>
        <meter min={0} max={1} value={effect.confidence} aria-label="Confidence" />
      </p>
      <p class="faint small">
        {known.length ? `Its effect was measured in the screen (${known.join(", ")}).` : like.length ? `Not in the screen; it resembles ${like.join(", ")}.` : "Not in the screen, and unlike anything in it: this is about the mean of all effects."}
      </p>
      <svg class="effect" viewBox={`0 0 ${LEFT + WIDTH + 8} ${ROW * effect.top_genes.length + 22}`} role="img" aria-label={`Predicted changes: ${effect.top_genes.map(({ gene, delta }) => `${gene} ${delta.toFixed(2)}`).join(", ")}`}>
        <line class="axis" x1={x(0)} x2={x(0)} y1={0} y2={ROW * effect.top_genes.length} />
        {effect.top_genes.map(({ gene, delta, low, high }, place) => {
          const y = ROW * place + ROW / 2;
          return (
            <g key={gene} class={delta < 0 ? "down" : "up"}>
              <text x={LEFT - 8} y={y + 4} text-anchor="end" onClick={() => onGene(gene)}>
                {gene}
              </text>
              <rect x={Math.min(x(0), x(delta))} y={y - 5} width={Math.max(Math.abs(x(delta) - x(0)), 1)} height={10} rx={2} />
              <line class="interval" x1={x(low)} x2={x(high)} y1={y} y2={y} />
            </g>
          );
        })}
        <text class="ends" x={LEFT} y={ROW * effect.top_genes.length + 16}>
          ← lower
        </text>
        <text class="ends" x={LEFT + WIDTH} y={ROW * effect.top_genes.length + 16} text-anchor="end">
          higher →
        </text>
      </svg>
      <p class="faint small">Change of log1p of counts per 10,000 against control cells; lines are 90 % intervals.</p>
      {onShift && (
        <p>
          <button type="button" class="secondary" disabled={shift.busy} onClick={show}>
            {shift.busy ? "Moving cells …" : "Show the shift on the map"}
          </button>
        </p>
      )}
      {shift.text && <p class="faint small">{shift.text}</p>}
      {shift.problem !== undefined && <ProblemCard problem={shift.problem} />}
    </>
  );
}
