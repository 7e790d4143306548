// The cards below the service's numbers. To add one: a module with a class like these, and a line in `makeCards`.

import { AlertCard } from "./alerts.js";
import { DriftCard } from "./drift.js";
import { RefusalsCard } from "./refusals.js";
import { ReleaseCard } from "./release.js";

/**
 * A card has any of these methods; it is hidden until it has something to show.
 *
 * - `setModel(model)`: another model was chosen
 * - `refresh()`: reads from the service, every four seconds; may return a promise
 * - `record(message)`: gets each message of the watch of the model
 *
 * @param {{dialog: Dialog, choose: Function, onTrial: Function}} context - `choose` opens a stream by its name;
 *   `onTrial` is called when a release's trial starts or ends
 */
export function makeCards(context) {
  const alerts = new AlertCard(makePanel("alerts", "Alarms"), context.choose);
  const release = new ReleaseCard(context);
  const drift = new DriftCard(makePanel("drift", "Drift"));
  const refusals = new RefusalsCard(makePanel("refusals", "Rejected requests"));
  return new Cards({ alerts, release, drift, refusals });
}

class Cards {
  constructor(cards) {
    Object.assign(this, cards);
    this.all = Object.values(cards);
  }

  setModel(model) {
    for (const card of this.all) card.setModel?.(model);
    showLinks();
  }

  async refresh() {
    await Promise.allSettled(this.all.map((card) => card.refresh?.()));
    showLinks();
  }

  record(message) {
    for (const card of this.all) card.record?.(message);
  }
}

/** Above the streams, a line for each card that is shown below them; a click scrolls to it. */
function showLinks() {
  const panels = [...document.querySelectorAll("#cards > .panel:not([hidden])")];
  const texts = panels.map((panel) => [panel.querySelector("h2"), panel.querySelector(".note")].map((one) => one.textContent));
  const links = document.getElementById("card-links");
  links.hidden = !panels.length;
  const drawn = JSON.stringify(texts);
  if (links.dataset.drawn === drawn) return;
  links.dataset.drawn = drawn;
  links.replaceChildren(
    ...panels.map((panel, i) => {
      const [title, facts] = texts[i];
      const button = Object.assign(document.createElement("button"), { type: "button", title: facts });
      button.append(Object.assign(document.createElement("strong"), { textContent: title }), ` ${facts}`);
      button.addEventListener("click", () => panel.scrollIntoView({ block: "start" }));
      return button;
    }),
  );
}

/** Append a hidden panel with a title to the page's cards; returns its parts {panel, facts, body}. */
export function makePanel(id, title) {
  const panel = Object.assign(document.createElement("section"), { id, className: "panel card", hidden: true });
  const head = Object.assign(document.createElement("div"), { className: "panel-head" });
  const heading = Object.assign(document.createElement("h2"), { id: `${id}-title`, textContent: title });
  const facts = Object.assign(document.createElement("p"), { className: "note" });
  const body = document.createElement("div");
  head.append(heading, facts);
  panel.append(head, body);
  panel.setAttribute("aria-labelledby", heading.id);
  document.getElementById("cards").append(panel);
  return { panel, facts, body };
}
