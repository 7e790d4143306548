"""The commands of the `stepwell` program, one module each; `service.cli` registers them."""
