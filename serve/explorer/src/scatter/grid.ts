/** Find the cell under the pointer: cells sorted into a grid over the square from -1 to 1. */

const SIDE = 128;

export class Grid {
  private readonly starts = new Uint32Array(SIDE * SIDE + 1);
  private readonly order: Uint32Array;

  constructor(private readonly places: Float32Array) {
    const count = places.length / 2;
    const boxes = new Int32Array(count);
    for (let row = 0; row < count; row++) {
      const box = Grid.box(places[2 * row], places[2 * row + 1]);
      boxes[row] = box;
      if (box >= 0) this.starts[box + 1]++;
    }
    for (let box = 0; box < SIDE * SIDE; box++) this.starts[box + 1] += this.starts[box];
    const next = this.starts.slice();
    this.order = new Uint32Array(this.starts[SIDE * SIDE]);
    for (let row = 0; row < count; row++) if (boxes[row] >= 0) this.order[next[boxes[row]]++] = row;
  }

  /** The nearest shown cell within `radius` of a place, or -1. */
  nearest(x: number, y: number, radius: number, shown: Uint8Array): number {
    let [best, least] = [-1, radius * radius];
    const [left, right, low, high] = [x - radius, x + radius, y - radius, y + radius].map(Grid.slot);
    for (let v = low; v <= high; v++) {
      for (let at = this.starts[v * SIDE + left]; at < this.starts[v * SIDE + right + 1]; at++) {
        const row = this.order[at];
        const distance = (this.places[2 * row] - x) ** 2 + (this.places[2 * row + 1] - y) ** 2;
        if (distance <= least && shown[row]) [best, least] = [row, distance];
      }
    }
    return best;
  }

  private static slot(value: number): number {
    return Math.min(Math.max(Math.floor(((value + 1) / 2) * SIDE), 0), SIDE - 1);
  }

  private static box(x: number, y: number): number {
    return Number.isNaN(x) || Number.isNaN(y) ? -1 : Grid.slot(y) * SIDE + Grid.slot(x);
  }
}

/** The nearest shown cell in a direction (dx, dy) from a cell, or -1; what lies aside counts as farther. */
export function inDirection(places: Float32Array, from: number, dx: number, dy: number, shown: Uint8Array): number {
  let [best, least] = [-1, Infinity];
  for (let row = 0; row < shown.length; row++) {
    if (!shown[row] || row === from) continue;
    const [x, y] = [places[2 * row] - places[2 * from], places[2 * row + 1] - places[2 * from + 1]];
    const along = x * dx + y * dy;
    const aside = Math.abs(x * dy - y * dx);
    if (along <= aside) continue;
    if (along + 2 * aside < least) [best, least] = [row, along + 2 * aside];
  }
  return best;
}
