/** What went wrong, in the service's words, with what helps. */
import { Problem } from "./api";

export function ProblemCard({ problem, onClose }: { problem: unknown; onClose?: () => void }) {
  const title = problem instanceof Problem ? problem.title : "The page failed";
  const detail = problem instanceof Problem ? problem.detail : `${problem}. Reload the page.`;
  return (
    <div class="problem" role="alert">
      <div>
        <b>{title}</b>
        <p>{detail}</p>
      </div>
      {onClose && (
        <button type="button" class="quiet" aria-label="Dismiss" onClick={onClose}>
          ✕
        </button>
      )}
    </div>
  );
}
