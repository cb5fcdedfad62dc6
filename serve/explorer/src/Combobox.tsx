/** A text field that suggests names: the ARIA pattern of a combobox with a list. */
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";

interface Props {
  label: string;
  placeholder: string;
  names: string[];
  value: string;
  onChoose: (name: string) => void;
}

const MOST = 10;

export function Combobox({ label, placeholder, names, value, onChoose }: Props) {
  const id = useId();
  const [text, setText] = useState(value);
  const [open, setOpen] = useState(false);
  const [active, setActive] = useState(0);
  const list = useRef<HTMLUListElement>(null);
  useEffect(() => setText(value), [value]);
  const found = useMemo(() => {
    const wanted = text.trim().toUpperCase();
    if (!wanted) return [];
    const begin = names.filter((name) => name.toUpperCase().startsWith(wanted)).sort((one, other) => one.length - other.length || (one < other ? -1 : 1));
    return begin.slice(0, MOST);
  }, [text, names]);
  const choose = (name: string): void => {
    setOpen(false);
    setText(name);
    if (name.trim()) onChoose(name.trim());
  };
  const press = (event: KeyboardEvent): void => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      setOpen(true);
      setActive((now) => (now + (event.key === "ArrowDown" ? 1 : -1) + found.length) % Math.max(found.length, 1));
    } else if (event.key === "Enter") {
      event.preventDefault();
      const exact = names.includes(text.trim());
      choose(open && found.length && !exact ? found[Math.min(active, found.length - 1)] : text);
    } else if (event.key === "Escape") setOpen(false);
  };
  const isOpen = open && found.length > 0;
  return (
    <div class="combobox">
      <label for={id}>{label}</label>
      <input
        id={id}
        type="text"
        role="combobox"
        autocomplete="off"
        spellcheck={false}
        placeholder={placeholder}
        value={text}
        aria-expanded={isOpen}
        aria-controls={`${id}-list`}
        aria-autocomplete="list"
        aria-activedescendant={isOpen ? `${id}-${active}` : undefined}
        onInput={(event) => {
          setText(event.currentTarget.value);
          setActive(0);
          setOpen(true);
        }}
        onKeyDown={press}
        onBlur={() => setOpen(false)}
      />
      <ul ref={list} id={`${id}-list`} role="listbox" aria-label={label} hidden={!isOpen}>
        {found.map((name, place) => (
          <li
            key={name}
            id={`${id}-${place}`}
            role="option"
            aria-selected={place === active}
            onPointerDown={(event) => {
              event.preventDefault();
              choose(name);
            }}
          >
            {name}
          </li>
        ))}
      </ul>
    </div>
  );
}
