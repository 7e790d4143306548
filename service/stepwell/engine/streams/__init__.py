"""Operations on whole streams: reset, fork, snapshots, import and export of states."""
