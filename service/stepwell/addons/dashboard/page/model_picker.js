// The list from which a model is chosen.

export class ModelPicker {
  #select;

  /** @param {{select: HTMLSelectElement, choose: Function}} page - `choose` gets the name of the model that is chosen */
  constructor({ select, choose }) {
    this.#select = select;
    select.addEventListener("change", () => choose(select.value));
  }

  /** List models; one alone needs no choice. */
  fill(models) {
    const title = ({ name, version }) => (version > 1 ? `${name}, version ${version}` : name);
    this.#select.replaceChildren(...models.map((model) => new Option(title(model), model.name)));
    this.#select.disabled = models.length < 2;
  }

  /** Show which model is open. */
  show(name) {
    this.#select.value = name;
  }

  /** Show that none of the models is open, so that even a single one can be chosen. */
  showNone() {
    this.#select.value = "";
    this.#select.disabled = this.#select.length === 0;
  }
}
