/**
 * Draw cells pixel by pixel, for browsers without a graphics card: WebGL in software takes a microsecond and more for each
 * point, this a few hundredths. It looks like `gl.ts`.
 */
import type { Rgb } from "../palette";
import { type Camera, type Size, pointSize } from "./camera";
import { type Look, type Painter, STRIDES } from "./painter";

const PLAIN_PIXELS = 3; // up to which points are squares without blending
const [OPACITY, MUTED_OPACITY] = [0.92, 0.5];

export class PixelCloud implements Painter {
  private places: Float32Array = new Float32Array(0);
  private before: Float32Array = new Float32Array(0);
  private slots = new Uint16Array(0);
  private colours: Uint8Array = new Uint8Array(0);
  private shown: Uint32Array[] = STRIDES.map(() => new Uint32Array(0));
  private hidden: Uint32Array = new Uint32Array(0);
  private readonly masks = new Map<string, Uint8Array>();
  private image: ImageData | null = null;

  constructor(private readonly pen: CanvasRenderingContext2D) {}

  setPlaces(places: Float32Array, before: Float32Array): void {
    this.places = places;
    this.before = before;
  }

  setValues(values: Float32Array, look: Look, colours: Uint8Array): void {
    const last = colours.length / 4 - 1;
    const scale = (last - 1) / (look.high - look.low || 1e-12);
    this.colours = colours;
    this.slots = Uint16Array.from(values, (value) => {
      if (Number.isNaN(value)) return last;
      const slot = look.categories ? value : Math.round((value - look.low) * scale);
      return Math.min(Math.max(slot, 0), last - 1);
    });
  }

  setOrder(shown: Uint32Array, hidden: Uint32Array): void {
    this.shown = STRIDES.map((stride) => (stride === 1 ? shown : shown.filter((_, place) => place % stride === 0)));
    this.hidden = hidden;
  }

  draw(camera: Camera, size: Size, ratio: number, blend: number, ground: Rgb, level: number): void {
    const { canvas } = this.pen;
    const { width, height } = canvas;
    if (this.image?.width !== width || this.image.height !== height) this.image = new ImageData(width, height);
    const pixels = new Uint32Array(this.image.data.buffer);
    pixels.fill(packed(ground));
    const diameter = Math.max(Math.round(pointSize(camera, this.places.length / 2) * ratio), 1);
    const scale = (camera.zoom * Math.min(size.width, size.height) * ratio) / 2;
    const view = { x: camera.x, y: camera.y, scale, width, height, blend, diameter };
    if (level === 0) this.paint(pixels, this.hidden, view, true);
    this.paint(pixels, this.shown[level], view, false);
    this.pen.putImageData(this.image, 0, 0);
  }

  private paint(pixels: Uint32Array, order: Uint32Array, view: View, muted: boolean): void {
    const { places, before, slots, colours } = this;
    const { scale, width, height, blend, diameter } = view;
    const [offsetX, offsetY] = [width / 2 - view.x * scale - diameter / 2, height / 2 + view.y * scale - diameter / 2];
    const lacking = colours.length / 4 - 1;
    const packedColours = Uint32Array.from({ length: lacking + 1 }, (_, slot) => packed(colours.subarray(4 * slot, 4 * slot + 3)));
    for (let at = 0; at < order.length; at++) {
      const row = 2 * order[at];
      let [x, y] = [places[row], places[row + 1]];
      if (blend < 1) [x, y] = [before[row] + (x - before[row]) * blend, before[row + 1] + (y - before[row + 1]) * blend];
      const left = Math.round(x * scale + offsetX);
      const top = Math.round(offsetY - y * scale);
      // Also false for NaN: a cell without a place.
      if (!(left > -diameter && top > -diameter && left < width && top < height)) continue;
      const slot = muted ? lacking : slots[row / 2];
      if (diameter <= PLAIN_PIXELS) square(pixels, view, left, top, packedColours[slot]);
      else this.stamp(pixels, view, left, top, packedColours[slot], colours[4 * slot + 3], slot === lacking);
    }
  }

  private stamp(pixels: Uint32Array, view: View, left: number, top: number, colour: number, kind: number, muted: boolean): void {
    const { diameter, width, height } = view;
    const mask = this.mask(kind, diameter, muted ? MUTED_OPACITY : OPACITY);
    const [red, green, blue] = [colour & 255, (colour >> 8) & 255, (colour >> 16) & 255];
    const [firstX, lastX] = [Math.max(-left, 0), Math.min(diameter, width - left)];
    for (let v = Math.max(-top, 0); v < diameter && top + v < height; v++) {
      const line = (top + v) * width + left;
      for (let u = firstX; u < lastX; u++) {
        const cover = mask[v * diameter + u];
        if (!cover) continue;
        const under = pixels[line + u];
        const [r, g, b] = [under & 255, (under >> 8) & 255, (under >> 16) & 255];
        pixels[line + u] =
          (0xff000000 | ((b + (((blue - b) * cover) >> 8)) << 16) | ((g + (((green - g) * cover) >> 8)) << 8) | (r + (((red - r) * cover) >> 8))) >>> 0;
      }
    }
  }

  /** How much of each pixel a shape covers, from 0 to 255. */
  private mask(kind: number, diameter: number, opacity: number): Uint8Array {
    const key = `${kind} ${diameter} ${opacity}`;
    let mask = this.masks.get(key);
    if (!mask) {
      mask = new Uint8Array(diameter * diameter);
      for (let place = 0; place < mask.length; place++) {
        const x = (((place % diameter) + 0.5) / diameter) * 2 - 1;
        const y = ((Math.floor(place / diameter) + 0.5) / diameter) * 2 - 1;
        mask[place] = 255 * Math.min(Math.max(edge(kind, x, y) * diameter * 0.5 + 0.5, 0), 1) * opacity;
      }
      this.masks.set(key, mask);
    }
    return mask;
  }
}

interface View {
  x: number;
  y: number;
  scale: number;
  width: number;
  height: number;
  blend: number;
  diameter: number;
}

function packed(colour: ArrayLike<number>): number {
  return (0xff000000 | (colour[2] << 16) | (colour[1] << 8) | colour[0]) >>> 0;
}

function square(pixels: Uint32Array, { diameter, width, height }: View, left: number, top: number, colour: number): void {
  const [firstX, lastX] = [Math.max(left, 0), Math.min(left + diameter, width)];
  for (let y = Math.max(top, 0); y < top + diameter && y < height; y++) {
    for (let x = firstX; x < lastX; x++) pixels[y * width + x] = colour;
  }
}

/** The distance inwards from the edge of a shape in the square from -1 to 1, as the fragment shader has it. */
function edge(kind: number, x: number, y: number): number {
  const [ax, ay, r] = [Math.abs(x), Math.abs(y), Math.hypot(x, y)];
  switch (kind) {
    case 0:
      return 1 - r;
    case 1:
      return 0.85 - Math.max(ax, ay);
    case 2:
      return Math.min(0.8 - y, (y + 1 - 1.9 * ax) * 0.47);
    case 3:
      return (1 - ax - ay) * 0.7;
    case 4:
      return Math.min(1 - r, r - 0.5);
    default:
      return 0.3 - Math.min(ax, ay);
  }
}
