/** The way from a file to a map, step by step, with the data check as soon as it is known. */
import { Check } from "./Check";
import type { Session, Stage } from "./types";

const STEPS: [Stage, string][] = [
  ["upload", "Send the file"],
  ["reading", "Check the data"],
  ["answering", "Ask the model"],
  ["layout", "Lay out the map"],
];

const percent = (session: Session): number | null => {
  if (session.stage === "upload") return session.num_bytes ? (100 * session.received) / session.num_bytes : null;
  return session.total ? (100 * session.done) / session.total : null;
};

export function Progress({ session, onClose }: { session: Session; onClose: () => void }) {
  if (session.trouble) {
    return (
      <main class="start">
        <div class="problem large" role="alert">
          <div>
            <b>This file cannot be shown</b>
            <p>{session.trouble.detail}</p>
            <p class="remedy">{session.trouble.remedy}</p>
          </div>
        </div>
        <button type="button" class="primary" onClick={onClose}>
          Try another file
        </button>
      </main>
    );
  }
  const now = STEPS.findIndex(([stage]) => stage === session.stage);
  const done = percent(session);
  return (
    <main class="start" aria-busy="true">
      <h1>{session.name}</h1>
      <ol class="steps">
        {STEPS.map(([stage, title], place) => (
          <li key={stage} class={place < now ? "done" : place === now ? "now" : ""} aria-current={place === now ? "step" : undefined}>
            <span>{title}</span>
            {place === now && (
              <>
                <progress max={100} value={done ?? undefined} aria-label={title} />
                <span class="faint number">{stage !== "upload" && session.total > 0 ? `${session.done.toLocaleString("en")} of ${session.total.toLocaleString("en")} cells` : done !== null ? `${Math.round(done)} %` : ""}</span>
              </>
            )}
          </li>
        ))}
      </ol>
      {session.findings.length > 0 && (
        <section class="card" aria-label="Data check">
          <h2>Data check</h2>
          <Check session={session} />
        </section>
      )}
    </main>
  );
}
