// The same without a pointer: node keyboard.mjs URL OUT. Prints what was seen and spoken as JSON.
import { join } from "node:path";
import { openBrowser } from "./browser.mjs";

const [url, out] = process.argv.slice(2);
const WAIT = { timeout: 600_000 };
const seen = {};
const { browser, page, complaints } = await openBrowser({ reducedMotion: "reduce" });
const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.innerText ?? "");
/** Press Tab until the focused element answers to `wanted`; the way must not be longer than a person has patience. */
const tabTo = async (wanted, most = 80) => {
  for (let step = 0; step < most; step++) {
    await page.keyboard.press("Tab");
    if (wanted.test(await focused())) return;
  }
  throw new Error(`no way to ${wanted} by Tab; the focus is on ${await focused()}`);
};

await page.goto(url);
await page.getByRole("button", { name: "Choose a file" }).waitFor();
await tabTo(/Cells of this test/);
await page.keyboard.press("Enter");
await page.locator("canvas").waitFor(WAIT);
await page.getByText("UMAP is on its way").waitFor({ state: "detached", ...WAIT });
await page.locator(".entry").first().waitFor(WAIT);

await tabTo(/^Map of/);
await page.keyboard.press("+");
await page.keyboard.press("ArrowRight");
await page.keyboard.press("0");
await page.keyboard.press("Enter");
await page.locator(".cell h2").waitFor(WAIT);
seen.first = await page.locator("[role=status]").innerText();
await page.keyboard.press("Shift+ArrowLeft");
await page.waitForFunction((before) => document.querySelector("[role=status]").innerText !== before, seen.first, WAIT);
seen.second = await page.locator("[role=status]").innerText();
await page.screenshot({ path: join(out, "keyboard.png") });
await page.keyboard.press("Escape");
seen.none = await page.locator("[role=status]").innerText();

await page.evaluate(() => document.activeElement.blur());
await tabTo(/^[^\n]+\n\d+$/); // the first entry of the legend: a name and its number of cells
seen.entry = await focused();
await page.keyboard.press("Space");
seen.filtered = await page.locator(".strip .number").innerText();
await page.getByRole("tab", { name: "Data check" }).focus();
await page.keyboard.press("ArrowLeft");
seen.tab = await focused();
seen.complaints = complaints;
console.log(JSON.stringify(seen));
await browser.close();
