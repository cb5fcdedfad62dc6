/** What draws the cells: WebGL on a graphics card, else the processor. */
import type { Rgb } from "../palette";
import type { Camera, Size } from "./camera";
import { PointCloud } from "./gl";
import { PixelCloud } from "./raster";

export interface Look {
  categories: boolean;
  low: number;
  high: number;
}

export interface Painter {
  /** Set the places of all cells, and those from which they move there. */
  setPlaces(places: Float32Array, before: Float32Array): void;
  /** Set each cell's value; `colours` has RGB and the shape for each slot, the last for cells without a value. */
  setValues(values: Float32Array, look: Look, colours: Uint8Array): void;
  /** Set the order in which cells are drawn, the topmost last; hidden ones lie below, without colour. */
  setOrder(shown: Uint32Array, hidden: Uint32Array): void;
  /** Draw; `blend` goes from 0 (the places before) to 1. Above level 0 only some of the cells are drawn. */
  draw(camera: Camera, size: Size, ratio: number, blend: number, ground: Rgb, level: number): void;
}

/** Of how many cells one is drawn, by the level of thinning: a slow machine draws fewer while the map moves. */
export const STRIDES = [1, 3, 8, 20];
const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;

/** The painter of a canvas; `?painter=webgl` or `?painter=pixels` in the address chooses one, for measurements. */
export function choosePainter(canvas: HTMLCanvasElement): Painter {
  const wanted = new URLSearchParams(location.search).get("painter");
  if (wanted === "webgl" || (wanted !== "pixels" && hasGraphicsCard())) {
    const gl = canvas.getContext("webgl2", { antialias: false, alpha: false });
    if (gl) return new PointCloud(gl);
  }
  return new PixelCloud(canvas.getContext("2d", { alpha: false })!);
}

function hasGraphicsCard(): boolean {
  const gl = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (!gl) return false;
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return !SOFTWARE.test(name);
}
