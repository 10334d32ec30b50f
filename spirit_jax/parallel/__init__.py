"""The device mesh, the table of sharding rules, the processes of a job and the compiler options of each chip."""
