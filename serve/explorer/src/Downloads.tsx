/** The answers and the figure as files. */
import { useState } from "preact/hooks";
import * as api from "./api";
import type { Session } from "./types";

interface Props {
  session: Session;
  onFigure: (kind: "svg" | "png") => Promise<void>;
  onProblem: (problem: unknown) => void;
}

export function Downloads({ session, onFigure, onProblem }: Props) {
  const [busy, setBusy] = useState("");
  const stem = session.name.split(".")[0] || "cells";
  const ready = session.stage === "ready";
  const get = async (name: string, work: () => Promise<void>): Promise<void> => {
    setBusy(name);
    try {
      await work();
    } catch (reason) {
      onProblem(reason);
    }
    setBusy("");
  };
  const answers = (name: string): Promise<void> => get(name, () => api.download(session.id, name, `${stem}.${name}`));
  const choices: [string, string, () => Promise<void>, boolean][] = [
    ["annotated.h5ad", "h5ad with the answers", () => answers("annotated.h5ad"), ready],
    ["answers.csv", "CSV of the answers", () => answers("answers.csv"), ready],
    ["svg", "Figure, SVG", () => get("svg", () => onFigure("svg")), true],
    ["png", "Figure, PNG", () => get("png", () => onFigure("png")), true],
  ];
  return (
    <details class="menu">
      <summary class="secondary">Download</summary>
      <div class="pop" role="group" aria-label="Download">
        {choices.map(([name, title, work, enabled]) => (
          <button type="button" key={name} disabled={!enabled || busy !== ""} onClick={work} data-download={name}>
            {busy === name ? "Writing …" : title}
          </button>
        ))}
        {!ready && <p class="faint small">Files of answers are ready with the map.</p>}
      </div>
    </details>
  );
}
