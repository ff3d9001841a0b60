"""What the forkserver imports last: what it has by then is no garbage.

Each process that is forked would look through it again, all half a million objects, in every full collection: the
surgery makes one for each cut under DDP, so that ranks spent a third of their time in there.
"""

import gc

gc.collect()
gc.freeze()
