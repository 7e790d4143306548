// What can be done with a stream from the page: fork it, keep copies of it, reset it. What does harm is asked first.

import { getJson, pathOf, send } from "./feed.js";
import { number } from "./shapes.js";

const $ = (id) => document.getElementById(id);

/** The page's one dialog: a question, with a name to be given where one is needed. */
class Question {
  #act = null;

  constructor() {
    $("ask-no").addEventListener("click", () => $("ask").close());
    $("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#answer();
    });
  }

  /**
   * Ask. The dialog closes when `act` is done, and says why where it cannot be done.
   *
   * @param {{title: string, text: string, label?: string, name?: string, yes: string, harms?: boolean, items?: Node[],
   *   act: Function}} question - `act` gets the name
   */
  ask({ title, text, label = "", name = "", yes, harms = false, items = [], act }) {
    this.#act = act;
    const words = { "ask-title": title, "ask-text": text, "ask-label": label, "ask-yes": yes, "ask-problem": "" };
    for (const [id, said] of Object.entries(words)) $(id).textContent = said;
    $("ask-field").hidden = $("ask-name").disabled = !label;
    $("ask-name").value = name;
    $("ask-yes").classList.toggle("harms", harms);
    $("ask-items").replaceChildren(...items);
    if (!$("ask").open) $("ask").showModal();
    if (label) $("ask-name").select();
    else $("ask-no").focus(); // not the harm
  }

  async #answer() {
    const act = this.#act;
    $("ask-yes").disabled = true;
    $("ask-problem").textContent = "";
    try {
      await act($("ask-name").value.trim());
      if (act === this.#act) $("ask").close(); // else it has asked again
    } catch (problem) {
      $("ask-problem").textContent = problem.message;
    } finally {
      $("ask-yes").disabled = false;
    }
  }
}

/** The buttons of the chosen stream. */
export class Tending {
  #question = new Question();

  /**
   * @param {{current: Function, did: Function}} on - `current` gives the model and the stream; `did` gets what was done
   *   in words, and {stream, step} where a stream stands elsewhere now
   */
  constructor({ current, did }) {
    this.did = did;
    for (const what of ["fork", "snapshots", "reset"]) {
      $(what).addEventListener("click", async () => {
        try {
          await this[what](...current());
        } catch (problem) {
          did(problem.message);
        }
      });
    }
  }

  fork(model, { name, step }) {
    this.#question.ask({
      title: `Fork ${name}`,
      text: `Another stream begins as this one is now, at about step ${number(step)}. Both go on independently.`,
      label: "Id of the new stream",
      name: `${name}-fork`,
      yes: "Fork",
      act: async (to) => {
        const made = await send("POST", pathOf(model.name, name, "fork"), { to });
        this.did(`${to} begins at step ${number(made.step)}, as ${name} was.`, made);
      },
    });
  }

  reset(model, { name, step }, snapshot = null) {
    const where = snapshot ? `step ${number(snapshot.step)}, as snapshot ${snapshot.name} has it` : "the initial state";
    this.#question.ask({
      title: `Reset ${name}?`,
      text: `It is at about step ${number(step)} and would go back to ${where}. What came since is lost.`,
      yes: "Reset",
      harms: true,
      act: async () => {
        const body = snapshot ? { to: { snapshot: snapshot.name } } : {};
        const now = await send("POST", pathOf(model.name, name, "reset"), body);
        this.did(`${name} is back at step ${number(now.step)}.`, { stream: name, step: now.step });
      },
    });
  }

  /** Show the snapshots of a stream; throws where they cannot be had. */
  async snapshots(model, stream) {
    const { snapshots } = await getJson(pathOf(model.name, stream.name, "snapshots"));
    this.#question.ask({
      title: `Snapshots of ${stream.name}`,
      text: `Copies that the stream can go back to${snapshots.length ? "." : "; there are none yet."}`,
      label: "Name of a new one",
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
    this.#question.ask({
      title: `Replace snapshot ${name}?`,
      text: `It is ${stream.name} at step ${number(step)}, and would be as the stream is now.`,
      yes: "Replace",
      harms: true,
      act: () => this.#take(model, stream, name),
    });
  }

  async #take(model, stream, name) {
    const taken = await send("PUT", pathOf(model.name, stream.name, `snapshots/${encodeURIComponent(name)}`));
    this.did(`Snapshot ${name} is ${stream.name} at step ${number(taken.step)}.`);
  }
}

function snapshotItem({ name, step, taken_at: takenAt }, goBack) {
  const item = document.createElement("li");
  const part = (tag, className, text) => {
    const node = document.createElement(tag);
    Object.assign(node, { className, textContent: text });
    item.append(node);
    return node;
  };
  part("span", "name", name);
  part("span", "note", `step ${number(step)}, ${new Date(takenAt).toLocaleString()}`);
  const button = part("button", "", "Go back");
  button.type = "button";
  button.addEventListener("click", goBack);
  return item;
}
