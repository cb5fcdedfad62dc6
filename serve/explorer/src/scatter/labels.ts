/** Where to write the names of categories on the map: at the densest place of each. */
import type { Colouring } from "../colouring";

export interface MapLabel {
  code: number;
  text: string;
  x: number;
  y: number;
}

const SIDE = 24;
const MOST = 30;

export function mapLabels(colouring: Colouring, places: Float32Array, shown: Uint8Array): MapLabel[] {
  if (colouring.kind !== "category" || colouring.categories.length > MOST) return [];
  const boxes = new Map<number, { count: number; x: number; y: number }>();
  const best = new Map<number, number>();
  for (let row = 0; row < shown.length; row++) {
    const [code, x, y] = [colouring.values[row], places[2 * row], places[2 * row + 1]];
    if (!shown[row] || Number.isNaN(code) || Number.isNaN(x)) continue;
    const slot = (value: number): number => Math.min(Math.floor(((value + 1) / 2) * SIDE), SIDE - 1);
    const key = (code * SIDE + slot(y)) * SIDE + slot(x);
    const box = boxes.get(key) ?? { count: 0, x: 0, y: 0 };
    box.count++;
    box.x += x;
    box.y += y;
    boxes.set(key, box);
    const top = best.get(code);
    if (top === undefined || box.count > boxes.get(top)!.count) best.set(code, key);
  }
  return [...best].map(([code, key]) => {
    const box = boxes.get(key)!;
    return { code, text: colouring.categories[code], x: box.x / box.count, y: box.y / box.count };
  });
}

/** Leave out names that would cover one of a commoner category; `at` gives a name's place on the screen. */
export function withoutOverlaps(labels: MapLabel[], at: (label: MapLabel) => [number, number]): MapLabel[] {
  const taken: [number, number, number][] = [];
  return [...labels]
    .sort((one, other) => one.code - other.code)
    .filter((label) => {
      const [x, y] = at(label);
      const half = label.text.length * 3.6 + 6;
      if (taken.some(([tx, ty, other]) => Math.abs(tx - x) < half + other && Math.abs(ty - y) < 17)) return false;
      taken.push([x, y, half]);
      return true;
    });
}
