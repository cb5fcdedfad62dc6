/** Ask for the service's key when it wants one; it is kept for this tab only. */
import { useEffect, useRef, useState } from "preact/hooks";
import { onKeyNeeded, setKey } from "./api";

export function KeyDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const [tried, setTried] = useState(false);
  const waiting = useRef<(() => void)[]>([]);
  useEffect(() => {
    onKeyNeeded(
      () =>
        new Promise((resolve) => {
          waiting.current.push(resolve);
          if (!dialog.current?.open) dialog.current?.showModal();
        }),
    );
  }, []);
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    setKey(String(new FormData(event.target as HTMLFormElement).get("key")).trim());
    setTried(true);
    dialog.current?.close();
    for (const resume of waiting.current.splice(0)) resume();
  };
  return (
    <dialog ref={dialog} aria-labelledby="key-title" onCancel={(event) => event.preventDefault()}>
      <form onSubmit={submit}>
        <h2 id="key-title">This service needs a key</h2>
        {tried && <p role="alert">The service did not accept this key.</p>}
        <p>Ask whoever runs it for one. The key is kept in this tab until you close it.</p>
        <label>
          Key
          <input name="key" type="password" required autocomplete="off" />
        </label>
        <button type="submit" class="primary">
          Continue
        </button>
      </form>
    </dialog>
  );
}
