/** The bar on top: the model that answers is always visible, with its provenance one click away. */
import type { Choice } from "./theme";
import type { About, Session } from "./types";

interface Props {
  about: About | null;
  session: Session | null;
  choice: Choice;
  onTheme: (choice: Choice) => void;
  onClose: () => void;
}

const NEXT: Record<Choice, Choice> = { auto: "light", light: "dark", dark: "auto" };
const ICONS: Record<Choice, string> = { auto: "◐", light: "☀", dark: "☾" };

export function Header({ about, session, choice, onTheme, onClose }: Props) {
  const model = session?.model ?? about?.model;
  return (
    <header>
      <a class="brand" href="/" aria-label="cytoray explorer">
        <svg viewBox="0 0 16 16" width="20" height="20" aria-hidden="true">
          <circle cx="5" cy="6" r="3.4" fill="#3f90da" />
          <circle cx="11" cy="5" r="2.4" fill="#ffa90e" />
          <circle cx="10" cy="11" r="3" fill="#832db6" />
        </svg>
        <span class="word">cytoray</span>
      </a>
      {session && (
        <span class="file" title={session.name}>
          {session.name}
        </span>
      )}
      <span class="space" />
      {model && (
        <details class="model">
          <summary>
            <span class="faint">Model</span> <b>{model.name}</b> <span class="nowrap">version {model.version}</span>
            <code class="wide">{model.digest.slice(0, 10)}</code>
          </summary>
          {about && <Provenance about={about} model={model} />}
        </details>
      )}
      <button type="button" class="quiet" title={`Theme: ${choice}`} aria-label={`Theme: ${choice}. Change it.`} onClick={() => onTheme(NEXT[choice])}>
        {ICONS[choice]}
      </button>
      {session && (
        <button type="button" class="quiet" onClick={onClose} title="Delete this session and its files">
          Close file
        </button>
      )}
    </header>
  );
}

function Provenance({ about, model }: { about: About; model: About["model"] }) {
  const rows: [string, string][] = [
    ["Name and version", `${model.name}, ${model.version}`],
    ["SHA-256 of the bundle", model.digest],
    ["Cell types", about.labels.length ? about.labels.join(", ") : "none: it only embeds"],
    ["Genes it knows", about.num_genes.toLocaleString("en")],
    ["Parameters", about.num_parameters.toLocaleString("en")],
    ["Tokens per cell", about.context_length.toLocaleString("en")],
    ["Carries", carried(about.attached) || "nothing beside its weights"],
    ["Answers", about.tasks.join(", ")],
    ["cytoray", about.cytoray],
  ];
  return (
    <dl class="pop">
      {rows.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** What a model carries, by the names of its files: reference.map.json is a part of the reference. */
const carried = (files: string[]): string => [...new Set(files.map((name) => name.split(".")[0]))].join(", ");
