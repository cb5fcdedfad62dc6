/** What the data check found. */
import type { Finding, Session } from "./types";

const MARKS: Record<Finding["level"], [string, string]> = { good: ["✓", "Good"], note: ["i", "Note"], warning: ["!", "Warning"] };

export function Check({ session }: { session: Session }) {
  const notes: Finding[] = session.notes.map((detail) => ({ level: "warning", title: "Answers", detail }));
  return (
    <ul class="check">
      {[...session.findings, ...notes].map(({ level, title, detail }) => (
        <li key={detail} class={level}>
          <span class="mark" role="img" aria-label={MARKS[level][1]}>
            {MARKS[level][0]}
          </span>
          <span>
            <b>{title}</b> {detail}
          </span>
        </li>
      ))}
    </ul>
  );
}
