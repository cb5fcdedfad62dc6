/** The legend is the filter: categories that are switched on and off, or a range of numbers. */
import { useMemo } from "preact/hooks";
import { type Colouring, type Filter, formatNumber } from "./colouring";
import { type Theme, hue, ramp, shape, shapePath } from "./palette";

interface Props {
  colouring: Colouring;
  filter: Filter | undefined;
  theme: Theme;
  onFilter: (filter: Filter | undefined) => void;
}

export function Legend(props: Props) {
  return props.colouring.kind === "category" ? <Categories {...props} /> : <Range {...props} />;
}

export function Swatch({ code, theme }: { code: number; theme: Theme }) {
  return (
    <svg class="swatch" viewBox="-1.1 -1.1 2.2 2.2" width="13" height="13" aria-hidden="true">
      <path d={shapePath(shape(code))} fill={hue(code, theme)} fill-rule="evenodd" />
    </svg>
  );
}

function Categories({ colouring, filter, theme, onFilter }: Props) {
  const hidden = filter?.hidden ?? new Set<number>();
  const apply = (next: Set<number>): void => onFilter(next.size ? { colouring, hidden: next } : undefined);
  const toggle = (code: number): void => {
    const next = new Set(hidden);
    if (!next.delete(code)) next.add(code);
    apply(next);
  };
  const only = (code: number): void => {
    const others = colouring.categories.map((_, other) => other).filter((other) => other !== code);
    apply(new Set([...others, -1]));
  };
  const most = Math.max(...colouring.counts, 1);
  return (
    <div class="legend" role="group" aria-label={`Legend: ${colouring.title}`}>
      <ul>
        {colouring.categories.map((name, code) => (
          <li key={name}>
            <button type="button" class={hidden.has(code) ? "entry off" : "entry"} aria-pressed={!hidden.has(code)} onClick={() => toggle(code)} title={name}>
              <Swatch code={code} theme={theme} />
              <span class="name">{name}</span>
              <span class="number faint">{colouring.counts[code].toLocaleString("en")}</span>
              <span class="bar" style={{ width: `${(100 * colouring.counts[code]) / most}%`, background: hue(code, theme) }} />
            </button>
            <button type="button" class="quiet only" aria-label={`Show only ${name}`} onClick={() => only(code)}>
              only
            </button>
          </li>
        ))}
      </ul>
      {hidden.size > 0 && (
        <button type="button" class="quiet" onClick={() => onFilter(undefined)}>
          Show all
        </button>
      )}
    </div>
  );
}

const BINS = 40;

function Range({ colouring, filter, theme, onFilter }: Props) {
  const { low, high } = colouring;
  const [from, to] = [filter?.low ?? low, filter?.high ?? high];
  const histogram = useMemo(() => {
    const bins = new Array<number>(BINS).fill(0);
    for (const value of colouring.values) {
      if (!Number.isNaN(value)) bins[Math.min(Math.floor(((value - low) / (high - low || 1)) * BINS), BINS - 1)]++;
    }
    return bins;
  }, [colouring]);
  const most = Math.max(...histogram, 1);
  const step = (high - low) / 200 || 1;
  const set = (next: { low?: number; high?: number }): void => {
    const [least, greatest] = [Math.min(next.low ?? from, next.high ?? to), Math.max(next.high ?? to, next.low ?? from)];
    const whole = least <= low && greatest >= high;
    onFilter(whole ? undefined : { colouring, low: least <= low ? -Infinity : least, high: greatest >= high ? Infinity : greatest });
  };
  const clamp = (value: number): number => Math.min(Math.max(value, low), high);
  return (
    <div class="legend" role="group" aria-label={`Legend: ${colouring.title}`}>
      <svg class="histogram" viewBox={`0 0 ${BINS} 20`} preserveAspectRatio="none" aria-hidden="true">
        {histogram.map((count, bin) => {
          // Square roots: the many cells without a gene would flatten all others.
          const tall = 20 * Math.sqrt(count / most);
          const middle = low + ((bin + 0.5) / BINS) * (high - low);
          return <rect key={bin} x={bin} width={0.9} y={20 - tall} height={tall} fill={ramp((bin + 0.5) / BINS, theme)} opacity={middle >= from && middle <= to ? 1 : 0.25} />;
        })}
      </svg>
      <div class="ends faint number">
        <span>{formatNumber(low)}</span>
        <span>{formatNumber(high)}</span>
      </div>
      <label class="slider">
        From <output>{formatNumber(clamp(from))}</output>
        <input type="range" min={low} max={high} step={step} value={clamp(from)} onInput={(event) => set({ low: event.currentTarget.valueAsNumber })} />
      </label>
      <label class="slider">
        To <output>{formatNumber(clamp(to))}</output>
        <input type="range" min={low} max={high} step={step} value={clamp(to)} onInput={(event) => set({ high: event.currentTarget.valueAsNumber })} />
      </label>
      {filter && (
        <button type="button" class="quiet" onClick={() => onFilter(undefined)}>
          Show all
        </button>
      )}
    </div>
  );
}
