// Operations on the chosen stream: fork, snapshots, reset. Destructive ones need a confirmation.

import { getJson, pathOf, send } from "./feed.js";
import { number } from "./shapes.js";

const $ = (id) => document.getElementById(id);

/** The page's dialog: a confirmation, optionally with a name to enter. There is one in the page. */
export class Dialog {
  #act = null;

  constructor() {
    $("ask-no").addEventListener("click", () => $("ask").close());
    $("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#confirm();
    });
  }

  /**
   * Open the dialog. It closes when `act` has succeeded, and shows the error if `act` fails.
   *
   * @param {{title: string, text: string, label?: string, name?: string, isOptional?: boolean, yes: string,
   *   isDestructive?: boolean, items?: Node[], act: Function}} options - `act` gets the name
   */
  open({ title, text, label = "", name = "", isOptional = false, yes, isDestructive = false, items = [], act }) {
    this.#act = act;
    const texts = { "ask-title": title, "ask-text": text, "ask-label": label, "ask-yes": yes, "ask-problem": "" };
    for (const [id, value] of Object.entries(texts)) $(id).textContent = value;
    $("ask-field").hidden = $("ask-name").disabled = !label;
    $("ask-name").value = name;
    $("ask-name").required = !isOptional;
    $("ask-yes").classList.toggle("harms", isDestructive);
    $("ask-items").replaceChildren(...items);
    if (!$("ask").open) $("ask").showModal();
    if (label) $("ask-name").select();
    else $("ask-no").focus(); // not on the destructive button
  }

  async #confirm() {
    const act = this.#act;
    $("ask-yes").disabled = true;
    $("ask-problem").textContent = "";
    try {
      await act($("ask-name").value.trim());
      if (act === this.#act) $("ask").close(); // otherwise `act` has opened another dialog
    } catch (problem) {
      $("ask-problem").textContent = problem.message;
    } finally {
      $("ask-yes").disabled = false;
    }
  }
}

/** The buttons of the chosen stream. */
export class Operations {
  #dialog;

  /**
   * @param {{dialog: Dialog, current: Function, onDone: Function}} on - `current` returns the model and the stream;
   *   `onDone` gets a message, and {stream, step} of a created or changed stream
   */
  constructor({ dialog, current, onDone }) {
    this.#dialog = dialog;
    this.onDone = onDone;
    for (const operation of ["fork", "snapshots", "reset"]) {
      $(operation).addEventListener("click", async () => {
        try {
          await this[operation](...current());
        } catch (problem) {
          onDone(problem.message);
        }
      });
    }
  }

  fork(model, { name, step }) {
    this.#dialog.open({
      title: `Fork ${name}`,
      text: `Creates a copy of the stream's current state, at about step ${number(step)}. Both streams then continue independently.`,
      label: "Id of the new stream",
      name: `${name}-fork`,
      yes: "Fork",
      act: async (to) => {
        const created = await send("POST", pathOf(model.name, name, "fork"), { to });
        this.onDone(`${to} was created at step ${number(created.step)} as a copy of ${name}.`, created);
      },
    });
  }

  reset(model, { name, step }, snapshot = null) {
    const target = snapshot ? `snapshot ${snapshot.name} (step ${number(snapshot.step)})` : "the initial state";
    this.#dialog.open({
      title: `Reset ${name}?`,
      text: `The stream is at about step ${number(step)} and will be reset to ${target}. Later timesteps are lost.`,
      yes: "Reset",
      isDestructive: true,
      act: async () => {
        const body = snapshot ? { to: { snapshot: snapshot.name } } : {};
        const now = await send("POST", pathOf(model.name, name, "reset"), body);
        this.onDone(`${name} was reset to step ${number(now.step)}.`, { stream: name, step: now.step });
      },
    });
  }

  /** Show the snapshots of a stream; throws if they cannot be read. */
  async snapshots(model, stream) {
    const { snapshots } = await getJson(pathOf(model.name, stream.name, "snapshots"));
    this.#dialog.open({
      title: `Snapshots of ${stream.name}`,
      text: snapshots.length ? "The stream can be reset to these copies." : "This stream has no snapshots yet.",
      label: "Name of a new snapshot",
      name: `step-${stream.step}`,
      yes: "Take",
      items: snapshots.map((one) => snapshotItem(one, () => this.reset(model, stream, one))),
      act: async (name) => {
        const old = snapshots.find((one) => one.name === name);
        if (old) this.#replace(model, stream, old);
        else await this.#take(model, stream, name);
      },
    });
  }

  #replace(model, stream, { name, step }) {
    this.#dialog.open({
      title: `Replace snapshot ${name}?`,
      text: `It has ${stream.name} at step ${number(step)} and will be replaced by the stream's current state.`,
      yes: "Replace",
      isDestructive: true,
      act: () => this.#take(model, stream, name),
    });
  }

  async #take(model, stream, name) {
    const taken = await send("PUT", pathOf(model.name, stream.name, `snapshots/${encodeURIComponent(name)}`));
    this.onDone(`Snapshot ${name} was taken of ${stream.name} at step ${number(taken.step)}.`);
  }
}

function snapshotItem({ name, step, taken_at: takenAt }, onReset) {
  const item = document.createElement("li");
  const part = (tag, className, text) => {
    const node = document.createElement(tag);
    Object.assign(node, { className, textContent: text });
    item.append(node);
    return node;
  };
  part("span", "name", name);
  part("span", "note", `step ${number(step)}, ${new Date(takenAt).toLocaleString()}`);
  const button = part("button", "", "Reset to this");
  button.type = "button";
  button.addEventListener("click", onReset);
  return item;
}
