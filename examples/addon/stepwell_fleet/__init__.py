"""An example of a package that extends Stepwell: a broker, a command, a stage, a step rule and a route."""
