// Lists that are drawn again and again while somebody uses them.

/**
 * Replace the items of a list. The control that has the focus keeps it, or the one of the same `data-key`; while one is
 * pressed the list stays as it is, because the click would be lost. Returns whether the items were replaced.
 */
export function refill(list, items) {
  if (list.matches(":active")) return false;
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.closest("[data-key]")?.dataset.key;
  list.replaceChildren(...items);
  const same = items.find(({ dataset }) => key !== undefined && dataset.key === key);
  (focused?.isConnected ? focused : same?.querySelector("a, button"))?.focus({ preventScroll: true });
  return true;
}
