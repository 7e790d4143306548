"""The commands of this package. Imported for `stepwell --help`, so it imports as little as possible."""

from stepwell import extend

COMMANDS = {"fleet": extend.Command("List streams that stand behind the others.", "stepwell_fleet.fleet:fleet")}
