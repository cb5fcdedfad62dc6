// Build the page into platform/cytoray/pages/explorer, or, with a folder as argument, there: `make explorer`.
// The built files are checked in and go into the wheel; tests/serving/test_explorer_page.py compares them with the source.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../../platform/cytoray/pages/explorer");

/** SHA-256 over names and contents of everything that the built files depend on. */
function sourceDigest() {
  const files = readdirSync(join(here, "src"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
  files.push(join(here, "package-lock.json"), join(here, "build.mjs"));
  const digest = createHash("sha256");
  for (const file of files.map((file) => relative(here, file)).sort()) {
    digest.update(`${file}\0`);
    digest.update(readFileSync(join(here, file)));
    digest.update("\0");
  }
  return digest.digest("hex");
}

mkdirSync(out, { recursive: true });
await build({
  entryPoints: { explorer: join(here, "src/main.tsx") },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  loader: { ".css": "css" },
  banner: { js: `// Built by \`make explorer\` from serve/explorer (source ${sourceDigest()}). Contains Preact (MIT).` },
});
writeFileSync(join(out, "index.html"), readFileSync(join(here, "src/index.html")));
