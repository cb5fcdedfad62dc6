/** Colours: ten hues chosen for the common colour blindnesses, repeated with another shape; and ramps by lightness. */

// The same cycle as cytoray.pages.charts; some are lighter on a dark ground.
const LIGHT = ["#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#92dadd", "#a96b59", "#e76300", "#b9ac70", "#39e6a5", "#cc5280"];
const DARK = ["#5aa5ea", "#ffb733", "#e5533c", "#b27ae0", "#92dadd", "#c58d7b", "#f58233", "#cfc389", "#39e6a5", "#e375a0"];
const RAMP_LIGHT = ["#c6ced7", "#a8cbe6", "#5a9fd4", "#2467a8", "#0b2f5c"];
const RAMP_DARK = ["#4a5765", "#2f5f8f", "#4a94d6", "#8fc4ef", "#e3f2ff"];

export const SHAPES = ["circle", "square", "triangle", "diamond", "ring", "cross"] as const;
export type Shape = (typeof SHAPES)[number];
export type Theme = "light" | "dark";
export type Rgb = [number, number, number];

/** The ground of the map, as the style sheet has it for cards. */
export const GROUND: Record<Theme, string> = { light: "#ffffff", dark: "#181f26" };
export const MUTED: Record<Theme, string> = { light: "#dde2e8", dark: "#303a44" };

export function hue(code: number, theme: Theme): string {
  const colours = theme === "dark" ? DARK : LIGHT;
  return colours[code % colours.length];
}

export function shape(code: number): Shape {
  return SHAPES[Math.floor(code / LIGHT.length) % SHAPES.length];
}

export function shapeIndex(code: number): number {
  return Math.floor(code / LIGHT.length) % SHAPES.length;
}

/** The colour at `place` (0 to 1) of the ramp for numbers. */
export function ramp(place: number, theme: Theme): string {
  const stops = theme === "dark" ? RAMP_DARK : RAMP_LIGHT;
  const at = Math.min(Math.max(place, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [one, two] = [rgb(stops[low]), rgb(stops[low + 1])];
  const mixed = one.map((part, index) => Math.round(part + (two[index] - part) * (at - low))) as Rgb;
  return `#${mixed.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

export function rgb(hex: string): Rgb {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)) as Rgb;
}

/** The path of a shape in a square from -1 to 1, for legends and figures. */
export function shapePath(kind: Shape, x = 0, y = 0, r = 1): string {
  const n = (value: number): string => value.toFixed(2);
  const points = (list: [number, number][]): string => `M${list.map(([px, py]) => `${n(x + px * r)} ${n(y + py * r)}`).join("L")}Z`;
  switch (kind) {
    case "square":
      return points([[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]]);
    case "triangle":
      return points([[0, -1], [0.95, 0.8], [-0.95, 0.8]]);
    case "diamond":
      return points([[0, -1], [1, 0], [0, 1], [-1, 0]]);
    case "cross":
      return points([[-0.3, -1], [0.3, -1], [0.3, -0.3], [1, -0.3], [1, 0.3], [0.3, 0.3], [0.3, 1], [-0.3, 1], [-0.3, 0.3], [-1, 0.3], [-1, -0.3], [-0.3, -0.3]]);
    default: {
      const arc = (radius: number, sweep: 0 | 1): string =>
        `M${n(x - radius)} ${n(y)}a${n(radius)} ${n(radius)} 0 1 ${sweep} ${n(2 * radius)} 0a${n(radius)} ${n(radius)} 0 1 ${sweep} ${n(-2 * radius)} 0Z`;
      return kind === "ring" ? arc(r, 1) + arc(0.5 * r, 0) : arc(r, 1);
    }
  }
}
