// Chromium as the tests use it: without a graphics card, so that WebGL runs in software (SwiftShader).
import { chromium } from "playwright-core";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const FLAGS = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"];

/** Open a browser and a page; `complaints` collects errors of its console, such as breaches of the content policy. */
export async function openBrowser(options = {}) {
  const { existsSync } = await import("node:fs");
  const executablePath = process.env.CHROMIUM ?? PLACES.find((place) => existsSync(place));
  const browser = await chromium.launch({ executablePath, args: FLAGS });
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: "light", ...options });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(error.message));
  return { browser, page, complaints };
}

/** Where a cell lies on the screen while the whole map is shown (the camera's HOME). */
export async function onScreen(page, x, y) {
  const box = await page.locator("canvas").boundingBox();
  const scale = (0.9 * Math.min(box.width, box.height)) / 2;
  return [box.x + box.width / 2 + x * scale, box.y + box.height / 2 - y * scale];
}
