/** Panels of which one is seen: the ARIA pattern of tabs, moved by arrow keys. */
import type { ComponentChildren } from "preact";

interface Props {
  value: string;
  onChange: (key: string) => void;
  tabs: { key: string; title: string; content: ComponentChildren }[];
}

export function Tabs({ value, onChange, tabs }: Props) {
  const press = (event: KeyboardEvent): void => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const focused = (event.target as HTMLElement).id;
    const next = tabs[(tabs.findIndex(({ key }) => `tab-${key}` === focused) + step + tabs.length) % tabs.length];
    onChange(next.key);
    document.getElementById(`tab-${next.key}`)?.focus();
  };
  return (
    <>
      <div class="tabs" role="tablist" onKeyDown={press}>
        {tabs.map(({ key, title }) => (
          <button type="button" key={key} id={`tab-${key}`} role="tab" aria-selected={key === value} aria-controls={`panel-${key}`} tabIndex={key === value ? 0 : -1} onClick={() => onChange(key)}>
            {title}
          </button>
        ))}
      </div>
      {tabs.map(({ key, content }) => (
        <div key={key} id={`panel-${key}`} class="panel" role="tabpanel" aria-labelledby={`tab-${key}`} hidden={key !== value}>
          {content}
        </div>
      ))}
    </>
  );
}
