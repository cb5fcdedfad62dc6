/** Where the map is looked at: a centre in the square from -1 to 1, and a magnification. */

export interface Camera {
  x: number;
  y: number;
  zoom: number;
}

export interface Size {
  width: number;
  height: number;
}

export const HOME: Camera = { x: 0, y: 0, zoom: 0.9 };
const [LEAST, MOST] = [0.4, 400];

/** Half the shorter side in pixels: the length of 1 at zoom 1. */
const unit = ({ width, height }: Size): number => Math.min(width, height) / 2;

export function toScreen(camera: Camera, size: Size, x: number, y: number): [number, number] {
  const scale = camera.zoom * unit(size);
  return [size.width / 2 + (x - camera.x) * scale, size.height / 2 - (y - camera.y) * scale];
}

export function toData(camera: Camera, size: Size, px: number, py: number): [number, number] {
  const scale = camera.zoom * unit(size);
  return [camera.x + (px - size.width / 2) / scale, camera.y - (py - size.height / 2) / scale];
}

export function panned(camera: Camera, size: Size, dx: number, dy: number): Camera {
  const scale = camera.zoom * unit(size);
  const keep = (value: number): number => Math.min(Math.max(value, -1.5), 1.5);
  return { ...camera, x: keep(camera.x - dx / scale), y: keep(camera.y + dy / scale) };
}

/** Zoom by a factor about a point of the screen, which stays where it is. */
export function zoomed(camera: Camera, size: Size, factor: number, px: number, py: number): Camera {
  const zoom = Math.min(Math.max(camera.zoom * factor, LEAST), MOST);
  const [x, y] = toData(camera, size, px, py);
  const ratio = camera.zoom / zoom;
  return { x: x + (camera.x - x) * ratio, y: y + (camera.y - y) * ratio, zoom };
}

/** Length in data of so many pixels. */
export function dataLength(camera: Camera, size: Size, pixels: number): number {
  return pixels / (camera.zoom * unit(size));
}

/** Diameter of a point in CSS pixels: smaller for many cells, growing slowly when magnified. */
export function pointSize(camera: Camera, numCells: number): number {
  const base = 9 * Math.pow(Math.max(numCells, 300) / 300, -0.24);
  return Math.min(Math.max(base * Math.pow(camera.zoom / HOME.zoom, 0.45), 1.6), 16);
}
