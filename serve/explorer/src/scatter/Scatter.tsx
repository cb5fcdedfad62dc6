/** The map of cells: pan, zoom, hover, select; by pointer, touch or keyboard. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Colouring, drawingOrder, formatValue, slotColours } from "../colouring";
import { GROUND, type Theme, rgb } from "../palette";
import { type Camera, HOME, type Size, dataLength, panned, pointSize, toData, toScreen, zoomed } from "./camera";
import { Grid, inDirection } from "./grid";
import { mapLabels, withoutOverlaps } from "./labels";
import { Pace } from "./pace";
import { type Painter, choosePainter } from "./painter";

export interface Arrow {
  from: number;
  x: number;
  y: number;
}

interface Props {
  places: Float32Array;
  colouring: Colouring;
  shown: Uint8Array;
  theme: Theme;
  selected: number;
  withLabels: boolean;
  arrows: Arrow[];
  onSelect: (row: number) => void;
  onCamera: (camera: Camera) => void;
}

const MOVE_MS = 900;
const REACH = 10; // pixels from a cell at which the pointer is on it
const CLICK = 4; // pixels that a click may wander
const PAN = 60;

declare global {
  interface Window {
    /** Times of the latest frames in ms, for measurements. */
    explorerFrames?: number[];
  }
}

export function Scatter(props: Props) {
  const { places, colouring, shown, theme, selected, withLabels, arrows, onSelect, onCamera } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  const cloud = useRef<Painter | null>(null);
  const moved = useRef({ before: places, since: -Infinity });
  const [size, setSize] = useState<Size>({ width: 800, height: 600 });
  const [camera, setCamera] = useState<Camera>(HOME);
  const [hovered, setHovered] = useState(-1);
  const latest = useRef({ camera, size, theme });
  const pace = useRef(new Pace()).current;
  latest.current = { camera, size, theme };
  const frame = useRef(0);
  const grid = useMemo(() => new Grid(places), [places]);
  const labels = useMemo(() => (withLabels ? mapLabels(colouring, places, shown) : []), [withLabels, colouring, places, shown]);

  /** Draw in the next frame; while the cells move to new places, in every frame. */
  const redraw = (): void => {
    if (frame.current) return;
    frame.current = requestAnimationFrame((now) => {
      frame.current = 0;
      const at = Math.min((performance.now() - moved.current.since) / MOVE_MS, 1);
      const eased = 1 - (1 - at) ** 3;
      const level = pace.levelAt(now, latest.current.camera, at < 1);
      cloud.current?.draw(latest.current.camera, latest.current.size, devicePixelRatio, eased, rgb(GROUND[latest.current.theme]), level);
      window.explorerFrames?.push(now);
      if (at < 1) redraw();
      else if (level > 0) pace.whenStill(redraw);
    });
  };

  useEffect(() => {
    const element = canvas.current!;
    cloud.current = choosePainter(element);
    const observer = new ResizeObserver(([entry]) => {
      const { width, height } = entry.contentRect;
      element.width = Math.max(1, Math.round(width * devicePixelRatio));
      element.height = Math.max(1, Math.round(height * devicePixelRatio));
      setSize({ width, height });
    });
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  useEffect(() => {
    const isSame = moved.current.before.length === places.length && moved.current.before !== places;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    cloud.current?.setPlaces(places, isSame ? moved.current.before : places);
    moved.current = { before: places, since: isSame && !still ? performance.now() : -Infinity };
  }, [places]);
  useEffect(() => cloud.current?.setValues(colouring.values, { categories: colouring.kind === "category", low: colouring.low, high: colouring.high }, slotColours(colouring, theme)), [colouring, theme]);
  useEffect(() => {
    const order = drawingOrder(colouring, shown);
    cloud.current?.setOrder(order.shown, order.hidden);
  }, [colouring, shown]);
  useEffect(redraw);
  useEffect(() => onCamera(camera), [camera]);

  const cellAt = (px: number, py: number): number => {
    const [x, y] = toData(latest.current.camera, latest.current.size, px, py);
    return grid.nearest(x, y, dataLength(latest.current.camera, latest.current.size, REACH), shown);
  };
  usePointer(canvas, latest, setCamera, setHovered, (px, py) => onSelect(cellAt(px, py)), cellAt);

  const press = (event: KeyboardEvent): void => {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const middle: [number, number] = [size.width / 2, size.height / 2];
    if (arrow && event.shiftKey) {
      const next = selected < 0 ? cellAt(...middle) : inDirection(places, selected, arrow[0], arrow[1], shown);
      if (next >= 0) {
        onSelect(next);
        setCamera((now) => centredIfOutside(now, size, places[2 * next], places[2 * next + 1]));
      }
    } else if (arrow) setCamera((now) => panned(now, size, -arrow[0] * PAN, arrow[1] * PAN));
    else if (event.key === "+" || event.key === "=") setCamera((now) => zoomed(now, size, 1.4, ...middle));
    else if (event.key === "-") setCamera((now) => zoomed(now, size, 1 / 1.4, ...middle));
    else if (event.key === "0" || event.key === "Home") setCamera(HOME);
    else if (event.key === "Enter" || event.key === " ") {
      const [x, y] = toData(camera, size, ...middle);
      onSelect(grid.nearest(x, y, 2, shown));
    } else if (event.key === "Escape") onSelect(-1);
    else return;
    event.preventDefault();
  };

  const ring = (row: number, name: string) => {
    if (row < 0 || Number.isNaN(places[2 * row])) return null;
    const [x, y] = toScreen(camera, size, places[2 * row], places[2 * row + 1]);
    return <circle class={name} cx={x} cy={y} r={pointSize(camera, shown.length) / 2 + (name === "chosen" ? 5 : 3)} />;
  };
  const [tipX, tipY] = hovered >= 0 ? toScreen(camera, size, places[2 * hovered], places[2 * hovered + 1]) : [0, 0];
  return (
    <div class="map">
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-label={`Map of ${shown.length.toLocaleString("en")} cells, coloured by ${colouring.title}`}
        aria-describedby="map-help"
        onKeyDown={press}
      />
      <svg class="overlay" aria-hidden="true" width={size.width} height={size.height}>
        <defs>
          <marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto">
            <path d="M0 0L8 4L0 8Z" />
          </marker>
        </defs>
        {arrows.map(({ from, x, y }) => {
          const [x1, y1] = toScreen(camera, size, places[2 * from], places[2 * from + 1]);
          const [x2, y2] = toScreen(camera, size, x, y);
          return <line class="arrow" key={from} x1={x1} y1={y1} x2={x2} y2={y2} marker-end="url(#head)" />;
        })}
        {withoutOverlaps(labels, ({ x, y }) => toScreen(camera, size, x, y)).map((label) => {
          const [x, y] = toScreen(camera, size, label.x, label.y);
          return (
            <text key={label.code} x={x} y={y}>
              {label.text}
            </text>
          );
        })}
        {ring(hovered, "hovered")}
        {ring(selected, "chosen")}
      </svg>
      <span class="crosshair" aria-hidden="true" />
      {hovered >= 0 && (
        <div class="tip" role="presentation" style={{ transform: `translate(${Math.min(tipX + 14, size.width - 190)}px, ${Math.max(tipY - 34, 4)}px)` }}>
          {colouring.title}: <b>{formatValue(colouring, colouring.values[hovered])}</b>
        </div>
      )}
      <div class="zoom">
        <button type="button" aria-label="Zoom in" title="Zoom in (+)" onClick={() => setCamera((now) => zoomed(now, size, 1.5, size.width / 2, size.height / 2))}>+</button>
        <button type="button" aria-label="Zoom out" title="Zoom out (−)" onClick={() => setCamera((now) => zoomed(now, size, 1 / 1.5, size.width / 2, size.height / 2))}>−</button>
        <button type="button" aria-label="Show all cells" title="Show all cells (0)" onClick={() => setCamera(HOME)}>⤢</button>
      </div>
      <p id="map-help" class="unseen">
        Arrow keys move the map, plus and minus zoom, zero shows all cells. Enter selects the cell in the middle, shift with an arrow key
        moves to the next cell in that direction, escape ends the selection.
      </p>
    </div>
  );
}

function centredIfOutside(camera: Camera, size: Size, x: number, y: number): Camera {
  const [px, py] = toScreen(camera, size, x, y);
  const inside = px > 30 && py > 30 && px < size.width - 30 && py < size.height - 30;
  return inside ? camera : { ...camera, x, y };
}

/** Pan by dragging, zoom by wheel, pinch or double click, click to select. */
function usePointer(
  canvas: { current: HTMLCanvasElement | null },
  latest: { current: { camera: Camera; size: Size } },
  setCamera: (change: (now: Camera) => Camera) => void,
  setHovered: (row: number) => void,
  onClick: (px: number, py: number) => void,
  cellAt: (px: number, py: number) => number,
): void {
  const handlers = useRef({ onClick, cellAt });
  handlers.current = { onClick, cellAt };
  useEffect(() => {
    const element = canvas.current!;
    const touching = new Map<number, [number, number]>();
    let wandered = 0;
    const spread = (): number => {
      const [[ax, ay], [bx, by]] = [...touching.values()];
      return Math.hypot(ax - bx, ay - by);
    };
    const down = (event: PointerEvent): void => {
      element.setPointerCapture(event.pointerId);
      touching.set(event.pointerId, [event.offsetX, event.offsetY]);
      wandered = touching.size > 1 ? Infinity : 0;
    };
    const move = (event: PointerEvent): void => {
      const before = touching.get(event.pointerId);
      const { size } = latest.current;
      if (!before) return setHovered(handlers.current.cellAt(event.offsetX, event.offsetY));
      const wide = touching.size === 2 ? spread() : 0;
      touching.set(event.pointerId, [event.offsetX, event.offsetY]);
      const [dx, dy] = [event.offsetX - before[0], event.offsetY - before[1]];
      wandered += Math.abs(dx) + Math.abs(dy);
      if (touching.size === 2) setCamera((now) => zoomed(now, size, spread() / (wide || 1), event.offsetX, event.offsetY));
      else if (wandered > CLICK) {
        setHovered(-1);
        setCamera((now) => panned(now, size, dx, dy));
      }
    };
    const up = (event: PointerEvent): void => {
      if (touching.delete(event.pointerId) && event.type === "pointerup" && wandered <= CLICK) handlers.current.onClick(event.offsetX, event.offsetY);
    };
    const wheel = (event: WheelEvent): void => {
      event.preventDefault();
      setHovered(-1);
      const factor = Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016));
      setCamera((now) => zoomed(now, latest.current.size, factor, event.offsetX, event.offsetY));
    };
    const twice = (event: MouseEvent): void => setCamera((now) => zoomed(now, latest.current.size, 2, event.offsetX, event.offsetY));
    const away = (): void => setHovered(-1);
    element.addEventListener("pointerdown", down);
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", up);
    element.addEventListener("pointercancel", up);
    element.addEventListener("pointerleave", away);
    element.addEventListener("wheel", wheel, { passive: false });
    element.addEventListener("dblclick", twice);
  }, []);
}
