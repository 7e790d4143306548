// What the page shows, kept in the address after `#`: the model, the stream, the search, and how the charts are drawn.

const DEFAULTS = { model: "", stream: "", search: "", view: "streams", compare: "", field: "", align: "newest", truth: "on", axis: "steps", last: "300", forecast: "0" };

/** The settings in an address; those that it does not have are the defaults. */
export function readAddress(hash = location.hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given.get(name) ?? value]));
}

/** The part of an address after the page's own, with the settings that differ from the defaults. */
export function addressOf(settings) {
  const shown = Object.entries(settings).filter(([name, value]) => name in DEFAULTS && String(value) !== DEFAULTS[name]);
  return `#${new URLSearchParams(shown)}`;
}

/** Change some settings in the page's address; the browser's history gets no entry. */
export function writeAddress(changes) {
  history.replaceState(null, "", addressOf({ ...readAddress(), ...changes }));
}

/** Show a setting of the address in a select element, and write what the user selects to the address. */
export function keepInAddress(select, name, onChange) {
  const show = () => {
    const { [name]: value } = readAddress();
    const has = [...select.options].some((option) => option.value === value);
    select.value = has ? value : DEFAULTS[name];
  };
  select.addEventListener("change", () => {
    writeAddress({ [name]: select.value });
    onChange();
  });
  window.addEventListener("hashchange", () => {
    const before = select.value;
    show();
    if (select.value !== before) onChange();
  });
  show();
}
