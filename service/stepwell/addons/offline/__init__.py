"""Step graphs in the engines of others: Spark and Ray, with the states as a savepoint that the service loads.

    graph.py       `OfflineModel`: a step graph, and the columns of a table that are its inputs; sent to other processes
    savepoints.py  `write_savepoint`: states as a file for `stepwell load`
    spark.py       predictions of a stream or a table, and states, by Spark
    ray.py         the same of a table, by Ray Data

They need the extras `spark` and `ray`.
"""
