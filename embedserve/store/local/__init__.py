"""Collections on local files, for the processes of one machine.

Locks, in the order in which a thread may take them; a thread that holds one takes only those below it:

1. ``Registry.changing``: collections and aliases are created, removed and renamed one at a time
2. a place inside ``Collection.close_guard``: closing waits until all have left
3. ``BuildState.lock``: one segment of a collection is built, or taken out of use, at a time
4. ``Collection.write_lock``: writes of a collection are committed, and snapshots published, one at a time
5. ``Writer.lock``: the connection for writing is in use, and stays open; who closes idle ones does not wait for it
6. all others, which are held for a look at some values: the names in Registry, the condition of CurrentSnapshot, the
   queue of GroupCommit, the idle connections of Readers, the counts of OpenFiles, the masks of Matcher, the queries of
   RecallMonitor

Removing a collection holds 1 while it waits for 2 and then for 3, so code inside a close guard never takes 1.
"""
