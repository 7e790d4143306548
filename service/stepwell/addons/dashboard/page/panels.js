// Which of the page's panels is shown beside the list of streams.

const $ = (id) => document.getElementById(id);

/**
 * Show the chosen stream, that there is none of this name, the compared streams, all streams, or that there are none yet.
 *
 * @param {{view: string, name: string, isKnown: boolean, isMissing: boolean, hasStreams: boolean}} page - `name` is that
 *   of the chosen stream; `isMissing`: the service has no such stream
 */
export function showPanels({ view, name, isKnown, isMissing, hasStreams }) {
  const isOne = view === "streams";
  const isEmpty = isOne ? !hasStreams && !isMissing : view === "fleet" ? false : !hasStreams;
  $("view").hidden = !isOne || !isKnown;
  $("missing").hidden = !isOne || !isMissing || isKnown;
  $("compare").hidden = view !== "compare" || isEmpty;
  $("fleet").hidden = view !== "fleet";
  $("empty").hidden = !isEmpty;
  if (isMissing) $("missing-title").textContent = `There is no stream ${name}`;
  document.querySelector(".work").classList.toggle("nothing", isEmpty);
}
