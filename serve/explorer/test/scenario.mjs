// A scientist's visit: node scenario.mjs URL FILE OUT. Prints what was seen as JSON; tests/end_to_end/test_explorer_page.py
// compares it with the service's answers. Screenshots and downloads go to OUT.
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import axe from "axe-core";
import { onScreen, openBrowser } from "./browser.mjs";

const [url, file, out] = process.argv.slice(2);
const WAIT = { timeout: 600_000 };
const seen = {};
const { browser, page, complaints } = await openBrowser({ acceptDownloads: true });
const shot = (name) => page.screenshot({ path: join(out, `${name}.png`) });
const accessible = async (name) => {
  const found = await page.evaluate(`${axe.source}; axe.run({ resultTypes: ["violations"] })`);
  seen[`axe ${name}`] = found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join("; ")}`);
};

// The empty page.
await page.goto(url);
await page.getByRole("button", { name: "Choose a file" }).waitFor();
const paints = await page.evaluate(() => performance.getEntriesByType("paint").map(({ name, startTime }) => [name, startTime]));
seen.paint_ms = Object.fromEntries(paints)["first-contentful-paint"];
await shot("start");
await accessible("start");

// Drop a file.
const content = readFileSync(file).toString("base64");
const transfer = await page.evaluateHandle(
  ([base64, name]) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name));
    return data;
  },
  [content, basename(file)],
);
await page.locator(".drop").dispatchEvent("drop", { dataTransfer: transfer });
await page.locator(".steps").waitFor();
await shot("progress");
await page.locator("canvas").waitFor(WAIT);
await page.getByText("UMAP is on its way").waitFor({ state: "detached", ...WAIT });
await page.waitForTimeout(1200); // cells move to their new places
seen.session = new URL(page.url()).hash.replace("#session=", "");
seen.cells = await page.locator(".strip .number").innerText();
seen.legend = await page.locator(".entry").allInnerTexts();
seen.model = await page.locator(".model summary").innerText();
await shot("map-light");
await accessible("map");

// Click a cell.
const places = await page.evaluate(async (id) => {
  const reply = await fetch(`/explorer/api/sessions/${id}/columns/layout.umap`);
  return [...new Float32Array(await reply.arrayBuffer())];
}, seen.session);
await page.mouse.click(...(await onScreen(page, places[0], places[1])));
await page.locator(".cell h2").waitFor(WAIT);
seen.clicked = await page.locator(".cell h2").innerText();
seen.verdict = await page.locator(".verdict").allInnerTexts();
seen.neighbours = await page.locator("tbody tr").count();
seen.spoken = await page.locator("[role=status]").innerText();
await shot("cell");
await accessible("cell");

// Filter by the legend, colour by a gene, filter by its range.
await page.locator(".entry").first().click();
seen.filtered = await page.locator(".strip .number").innerText();
await page.locator(".entry").first().click();
const gene = page.getByRole("combobox", { name: "or by a gene" });
await gene.fill("STAT");
await gene.press("Enter");
await page.locator(".histogram").waitFor(WAIT);
seen.coloured = await page.locator("canvas").getAttribute("aria-label");
await page.waitForTimeout(300);
await shot("gene");
await page.locator(".slider input").first().fill(await page.locator(".slider input").first().getAttribute("max"));
seen.high_only = await page.locator(".strip .number").innerText();
await page.getByRole("button", { name: "Show all", exact: true }).click();

// What the model knows of a gene.
await page.getByRole("tab", { name: "Gene" }).click();
const about = page.locator("#panel-gene").getByRole("combobox");
await about.fill("STAT1");
await about.press("Enter");
await page.locator(".effect").waitFor(WAIT);
seen.effect = await page.locator(".effect").getAttribute("aria-label");
seen.network = await page.getByRole("region", { name: "Network" }).innerText();
seen.near = await page.getByRole("region", { name: "Neighbours" }).locator(".chip").count();
await page.getByRole("button", { name: "Show the shift on the map" }).click();
await page.locator("line.arrow").first().waitFor({ state: "attached", ...WAIT });
seen.arrows = await page.locator("line.arrow").count();
await page.waitForTimeout(300);
await shot("perturb");
await accessible("gene");
await page.getByRole("button", { name: "Remove arrows" }).click();

// Download everything.
seen.downloads = {};
for (const name of ["answers.csv", "annotated.h5ad", "svg", "png"]) {
  const menu = page.locator(".menu");
  if ((await menu.getAttribute("open")) === null) await menu.locator("summary").click();
  const waiting = page.waitForEvent("download", WAIT);
  await page.locator(`[data-download="${name}"]`).click();
  const download = await waiting;
  seen.downloads[name] = download.suggestedFilename();
  await download.saveAs(join(out, download.suggestedFilename()));
}
await page.locator(".menu summary").click();

// Another version of the model takes over: the page says so, and answers the file again.
await page.route("**/explorer/api/about", async (route) => {
  const about = await (await route.fetch()).json();
  await route.fulfill({ json: { ...about, model: { ...about.model, version: "4", digest: "4".repeat(64) } } });
});
await page.evaluate(() => dispatchEvent(new Event("focus")));
await page.locator(".notice").waitFor(WAIT);
seen.notice = await page.locator(".notice").innerText();
await shot("other-version");
await accessible("other version");
await page.unroute("**/explorer/api/about");
await page.getByRole("button", { name: "Run again" }).click();
await page.locator("canvas").waitFor({ state: "detached", ...WAIT });
await page.locator("canvas").waitFor(WAIT);
await page.getByText("UMAP is on its way").waitFor({ state: "detached", ...WAIT });
await page.evaluate(() => dispatchEvent(new Event("focus")));
await page.locator(".notice").waitFor({ state: "detached", ...WAIT });
seen.again = await page.locator(".strip .number").innerText();

// Dark, narrow.
await page.emulateMedia({ colorScheme: "dark" });
await page.locator("label:has-text(\"Colour by\") select").first().selectOption({ label: "Cell type" });
await page.locator(".entry").first().waitFor(WAIT);
await page.getByRole("tab", { name: "Cell" }).click();
await page.waitForTimeout(300);
await shot("map-dark");
await accessible("dark");
await page.setViewportSize({ width: 400, height: 800 });
await page.waitForTimeout(300);
await shot("narrow");
await accessible("narrow");
seen.wider_than_screen = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
await page.setViewportSize({ width: 1440, height: 900 });

// Come back by the address, then close.
await page.reload();
await page.locator("canvas").waitFor(WAIT);
await page.getByRole("button", { name: "Close file" }).click();
await page.getByRole("button", { name: "Choose a file" }).waitFor();
seen.closed = await page.evaluate(async (id) => (await fetch(`/explorer/api/sessions/${id}`)).status, seen.session);

// A file without cells.
complaints.splice(0, complaints.length, ...complaints.filter((text) => !text.includes("404"))); // of the session just closed
await page.setInputFiles("#file", { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("no cells here") });
await page.locator(".problem").waitFor(WAIT);
seen.problem = await page.locator(".problem").innerText();
await shot("problem");
seen.complaints = complaints;
console.log(JSON.stringify(seen));
await browser.close();
