"""Operations on whole streams: reset, fork, snapshots, state in and out."""
