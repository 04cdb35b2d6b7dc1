// The groups of a step: which are shown, and in what order. Knows nothing of the page.

// Name -> [words, what a group is ordered by, the largest first; null: as in the file].
export const SORTS = {
  order: ["as sampled", null],
  best: ["score, high to low", (group) => mean(scores(group))],
  worst: ["score, low to high", (group) => -mean(scores(group))],
  spread: ["spread of scores", (group) => Math.max(...scores(group)) - Math.min(...scores(group))],
  kl: ["KL, high to low", (group) => mean(group.completions.map(({ kl_nats }) => kl_nats ?? 0))],
  length: ["length, long to short", (group) => mean(group.completions.map(({ tokens }) => tokens))],
};

// Groups with a completion (or a prompt) that has the text and a completion that scores `min` or more; each with its
// position in the file.
export function chosenGroups(groups, { text, min, sort }) {
  const wanted = text.toLowerCase();
  const least = min === "" ? -Infinity : Number(min);
  const has = (string) => string.toLowerCase().includes(wanted);
  const chosen = groups
    .map((group, position) => ({ ...group, position }))
    .filter((group) => has(group.prompt) || group.completions.some((completion) => has(completion.text)))
    .filter((group) => least === -Infinity || group.completions.some(({ score }) => score !== null && score >= least));
  const by = (SORTS[sort] ?? SORTS.order)[1];
  if (by) chosen.sort((a, b) => by(b) - by(a));
  return chosen;
}

export function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

export function scores(group) {
  return group.completions.map(({ score }) => score).filter((score) => score !== null);
}
