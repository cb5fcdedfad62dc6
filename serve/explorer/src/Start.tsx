/** The empty page: drop a file, choose one, or take a demo. */
import { useRef, useState } from "preact/hooks";
import type { About } from "./types";

interface Props {
  about: About;
  onFile: (file: File) => void;
  onDemo: (name: string) => void;
}

const size = (bytes: number): string => (bytes >= 2 ** 30 ? `${Math.round(bytes / 2 ** 30)} GB` : `${Math.round(bytes / 2 ** 20)} MB`);

export function Start({ about, onFile, onDemo }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const [over, setOver] = useState(false);
  const drop = (event: DragEvent): void => {
    event.preventDefault();
    setOver(false);
    const file = event.dataTransfer?.files[0];
    if (file) onFile(file);
  };
  const labelled = about.labels.length > 0;
  return (
    <main class="start">
      <h1>{labelled ? "Find out what your cells are." : "See your cells as the model does."}</h1>
      <p class="lead">
        Drop a file of single cells. The model {labelled ? `assigns each one of ${about.labels.length} types and says how sure it is` : "embeds each one"},
        and you explore the answers on a map.
      </p>
      <div
        class={over ? "drop over" : "drop"}
        onDragOver={(event) => {
          event.preventDefault();
          setOver(true);
        }}
        onDragLeave={() => setOver(false)}
        onDrop={drop}
      >
        <svg viewBox="0 0 24 24" width="36" height="36" aria-hidden="true">
          <path d="M12 16V4m0 0L7 9m5-5l5 5M4 16v3a1 1 0 001 1h14a1 1 0 001-1v-3" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round" />
        </svg>
        <p>Drop an h5ad here, or</p>
        <button type="button" class="primary" onClick={() => input.current?.click()}>
          Choose a file
        </button>
        <input
          ref={input}
          id="file"
          type="file"
          class="unseen"
          tabIndex={-1}
          aria-label="File of cells"
          onChange={(event) => {
            const file = event.currentTarget.files?.[0];
            if (file) onFile(file);
          }}
        />
        <p class="faint">
          Also 10x h5, h5mu, loom and tables, compressed or not; symbols or Ensembl ids; raw counts or normalised. Up to {size(about.max_file_bytes)}.
        </p>
      </div>
      {about.demos.length > 0 && (
        <section aria-label="Demos">
          <h2>No file at hand?</h2>
          <div class="demos">
            {about.demos.map((demo) => (
              <button type="button" class="demo" key={demo.name} onClick={() => onDemo(demo.name)}>
                <b>{demo.name}</b>
                <span>{demo.about}</span>
              </button>
            ))}
          </div>
        </section>
      )}
      <p class="faint small">
        The file goes to this service only. It is deleted when you close it, or {Math.round(about.max_age_s / 3600)} hours after its last use.
      </p>
    </main>
  );
}
