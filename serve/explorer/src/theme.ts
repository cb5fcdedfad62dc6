/** Light, dark, or as the system has it. */
import { useEffect, useState } from "preact/hooks";
import type { Theme } from "./palette";

export type Choice = "auto" | Theme;
const KEY = "cytoray-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export function useTheme(): [Theme, Choice, (choice: Choice) => void] {
  const [choice, setChoice] = useState<Choice>((localStorage.getItem(KEY) as Choice | null) ?? "auto");
  const [system, setSystem] = useState<Theme>(dark.matches ? "dark" : "light");
  useEffect(() => {
    const changed = (): void => setSystem(dark.matches ? "dark" : "light");
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  const theme = choice === "auto" ? system : choice;
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem(KEY, choice);
  }, [theme, choice]);
  return [theme, choice, setChoice];
}
