// The page's dialog: a question with an answer, optionally with a name to enter.

const $ = (id) => document.getElementById(id);

/** The page's dialog: a confirmation, optionally with a name to enter. There is one in the page. */
export class Dialog {
  #act = null;

  /** @param {{onLate: Function}} on - `onLate` gets the message of an action that failed after its dialog was closed */
  constructor(on) {
    this.on = on;
    $("ask-no").addEventListener("click", () => $("ask").close());
    $("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#confirm();
    });
    $("ask").addEventListener("close", () => {
      if ($("ask").open) return; // for another question meanwhile
      this.#act = null;
      if (!document.activeElement?.offsetParent) $("stream-list").focus(); // the button before is hidden now
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
    $("ask-yes").disabled = false;
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
      if (act !== this.#act) return this.on.onLate(problem.message);
      $("ask-problem").textContent = problem.message;
      $("ask-yes").disabled = false;
    }
  }
}
