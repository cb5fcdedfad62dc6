// Frames per second while 100,000 cells are panned and zoomed: node frames.mjs URL [CELLS] [PAINTER] [PICTURE].
// PAINTER is pixels or webgl (in software here). The cells are made up here; the page is the service's. Prints JSON: frames per second, the longest frame, and when the page was painted.
import { openBrowser } from "./browser.mjs";

const [url, count = "100000", painter = "pixels", picture] = process.argv.slice(2);
const numCells = Number(count);
const { browser, page, complaints } = await openBrowser();
const places = new Float32Array(2 * numCells);
const codes = new Uint16Array(numCells);
let seed = 1;
const uniform = () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
for (let row = 0; row < numCells; row++) {
  const code = (codes[row] = Math.floor(12 * uniform() ** 2));
  const [angle, radius] = [2 * Math.PI * uniform(), 0.22 * Math.sqrt(-Math.log(1 - uniform() * 0.98))];
  places[2 * row] = 0.62 * Math.cos(code * 2.4) * Math.sqrt((code + 1) / 12) + radius * Math.cos(angle);
  places[2 * row + 1] = 0.62 * Math.sin(code * 2.4) * Math.sqrt((code + 1) / 12) + radius * Math.sin(angle);
}
const categories = Array.from({ length: 12 }, (_, code) => `Type ${code + 1}`);
const counts = categories.map((_, code) => codes.filter((other) => other === code).length);
const column = { key: "annotate.0", group: "annotate", name: "label", kind: "category", categories, counts, low: null, high: null, missing: 0, part_of: "" };
const about = await (await fetch(`${url}/explorer/api/about`)).json();
const session = {
  id: "0".repeat(22), name: "made up.h5ad", num_bytes: 1, received: 1, stage: "ready", done: 0, total: 0, model: about.model, findings: [],
  num_cells: numCells, values: "counts", columns: [column], layouts: ["umap"], answered_by: ["annotate"], notes: [], trouble: null,
};
const numbers = (array) => ({ body: Buffer.from(array.buffer), contentType: "application/octet-stream" });
await page.route("**/explorer/api/sessions/**", (route) => {
  const path = new URL(route.request().url()).pathname;
  if (path.endsWith("/columns/layout.umap")) return route.fulfill(numbers(places));
  if (path.endsWith("/columns/annotate.0")) return route.fulfill(numbers(codes));
  return route.fulfill({ json: path.endsWith("/genes") ? [] : session });
});
await page.goto(`${url}/?painter=${painter}#session=${session.id}`);
await page.locator(".entry").first().waitFor({ timeout: 60_000 });
await page.waitForTimeout(1500);
const box = await page.locator("canvas").boundingBox();
const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
await page.evaluate(() => void (window.explorerFrames = []));
await page.mouse.move(x, y);
await page.mouse.down();
const until = Date.now() + 4000;
for (let step = 0; Date.now() < until; step++) await page.mouse.move(x + 180 * Math.sin(step / 9), y + 120 * Math.cos(step / 11));
await page.mouse.up();
const times = await page.evaluate(() => window.explorerFrames);
const gaps = times.slice(1).map((time, at) => time - times[at]).sort((one, other) => one - other);
const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);
if (picture) await page.screenshot({ path: picture });
console.log(
  JSON.stringify({
    cells: numCells,
    painter,
    frames_per_s: Math.round((1000 * (times.length - 1)) / (times.at(-1) - times[0])),
    median_frame_ms: Math.round(gaps[gaps.length >> 1]),
    p95_frame_ms: Math.round(gaps[Math.floor(gaps.length * 0.95)]),
    first_paint_ms: Math.round(paint),
    renderer: await page.evaluate(() => {
      const gl = document.createElement("canvas").getContext("webgl2");
      return gl.getParameter(gl.getExtension("WEBGL_debug_renderer_info").UNMASKED_RENDERER_WEBGL);
    }),
    complaints,
  }),
);
await browser.close();
