/** The map as a figure for a paper: SVG with text as text, or PNG; light whatever the theme of the page. */
import { type Colouring, colourOf, formatNumber } from "./colouring";
import { hue, ramp, shape, shapePath } from "./palette";
import { type Camera, pointSize, toScreen } from "./scatter/camera";
import { type MapLabel, mapLabels, withoutOverlaps } from "./scatter/labels";

interface Drawing {
  places: Float32Array;
  colouring: Colouring;
  order: Uint32Array;
  shown: Uint8Array;
  camera: Camera;
  caption: string;
  axes: string;
}

const MAP = { width: 720, height: 720 };
const LEGEND = 240;
const MOST_PATHS = 20_000; // of more cells the map in an SVG is a picture
const [INK, FAINT] = ["#1f2933", "#616e7c"];
const FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif";
const escape = (text: string): string => text.replace(/[&<>"]/g, (mark) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[mark]!);

export function figureSvg(drawing: Drawing): Blob {
  const { order } = drawing;
  const cells = order.length > MOST_PATHS ? picture(drawing) : paths(drawing);
  const [width, height] = [MAP.width + LEGEND, MAP.height + 44];
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="${FONT}" font-size="13" fill="${INK}">
<rect width="100%" height="100%" fill="#fff"/><clipPath id="map"><rect width="${MAP.width}" height="${MAP.height}"/></clipPath>
<g clip-path="url(#map)">${cells}</g>${names(drawing)}${axes(drawing)}<g transform="translate(${MAP.width + 16} 36)">${legend(drawing.colouring)}</g>
<text x="16" y="${height - 14}" font-size="11" fill="${FAINT}">${escape(drawing.caption)}</text></svg>`;
  return new Blob([svg], { type: "image/svg+xml" });
}

export async function figurePng(drawing: Drawing, scale = 2): Promise<Blob> {
  const image = new Image();
  image.src = `data:image/svg+xml;base64,${toBase64(await figureSvg(drawing).text())}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width * scale, image.height * scale];
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no PNG"))), "image/png"));
}

function toBase64(text: string): string {
  let binary = "";
  for (const byte of new TextEncoder().encode(text)) binary += String.fromCharCode(byte);
  return btoa(binary);
}

function* marks({ places, colouring, order, camera }: Drawing): Generator<{ x: number; y: number; r: number; colour: string; kind: ReturnType<typeof shape> }> {
  const r = pointSize(camera, order.length) / 2;
  for (const row of order) {
    if (Number.isNaN(places[2 * row])) continue;
    const [x, y] = toScreen(camera, MAP, places[2 * row], places[2 * row + 1]);
    const value = colouring.values[row];
    yield { x, y, r, colour: colourOf(colouring, value, "light"), kind: colouring.kind === "category" && !Number.isNaN(value) ? shape(value) : "circle" };
  }
}

function paths(drawing: Drawing): string {
  const found: string[] = [];
  for (const { x, y, r, colour, kind } of marks(drawing)) found.push(`<path d="${shapePath(kind, x, y, r)}" fill="${colour}" fill-rule="evenodd"/>`);
  return found.join("");
}

function picture(drawing: Drawing): string {
  const scale = 3;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [MAP.width * scale, MAP.height * scale];
  const pen = canvas.getContext("2d")!;
  pen.scale(scale, scale);
  for (const { x, y, r, colour, kind } of marks(drawing)) {
    pen.fillStyle = colour;
    if (kind === "circle") {
      pen.beginPath();
      pen.arc(x, y, r, 0, 2 * Math.PI);
      pen.fill();
    } else pen.fill(new Path2D(shapePath(kind, x, y, r)), "evenodd");
  }
  return `<image width="${MAP.width}" height="${MAP.height}" href="${canvas.toDataURL("image/png")}"/>`;
}

function names({ colouring, places, shown, camera }: Drawing): string {
  const at = ({ x, y }: MapLabel): [number, number] => toScreen(camera, MAP, x, y);
  return withoutOverlaps(mapLabels(colouring, places, shown), at)
    .map((label) => {
      const [x, y] = at(label);
      return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="middle" font-weight="600" stroke="#fff" stroke-width="3" paint-order="stroke">${escape(label.text)}</text>`;
    })
    .join("");
}

function axes({ axes: name }: Drawing): string {
  const y = MAP.height;
  return `<g stroke="${FAINT}" fill="none"><path d="M16 ${y - 76}V${y - 16}H76"/></g><g fill="${FAINT}" font-size="11"><text x="80" y="${y - 12}">${name} 1</text><text x="16" y="${y - 82}">${name} 2</text></g>`;
}

function legend(colouring: Colouring): string {
  const title = `<text font-weight="600">${escape(colouring.title)}</text>`;
  if (colouring.kind === "category") {
    const rows = colouring.categories.slice(0, 30).map((name, code) => {
      const text = name.length > 30 ? `${name.slice(0, 29)}…` : name;
      return `<g transform="translate(6 ${22 * (code + 1) + 4})"><path d="${shapePath(shape(code), 0, -4, 5.5)}" fill="${hue(code, "light")}" fill-rule="evenodd"/><text x="14">${escape(text)}</text></g>`;
    });
    return title + rows.join("");
  }
  const stops = Array.from({ length: 12 }, (_, place) => `<rect x="${place * 14}" y="14" width="14.5" height="12" fill="${ramp(place / 11, "light")}"/>`);
  return `${title}${stops.join("")}<g font-size="11" fill="${FAINT}"><text y="42">${formatNumber(colouring.low)}</text><text x="168" y="42" text-anchor="end">${formatNumber(colouring.high)}</text></g>`;
}
