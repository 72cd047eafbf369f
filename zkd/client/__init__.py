"""What a program imports to give work to a cluster and to look at it.

    client       `Client`: one session, the calls, the cluster at a glance
    calls        run, submit, map: arguments -> task              handles    one task, from outside
    dropbox      tasks into the tree and out of it, across cuts   outstanding  how the end of a task is heard
    outcomes     result -> value or exception                     uploads    large arrays go ahead by HTTP
    explain      why a task waits, in words                  schedules    recurring tasks, and when they fire
    desired      znodes that people write and zkd follows

    datasets     tables in and out of the cluster                dataset    one version of one, to be read
    intake       what is given -> rows by part                   sending    parts -> nodes, up to the quorum
    editions     the manifests in the tree                       copies     where copies are and belong
    reading      segments -> arrays                              race       a second source beside a slow one
    plane        HTTP to nodes

    jobs         training jobs: drop, look, steer                following  a job's rounds, from whoever opens them
    terms        what a job may ask for                          model      what came of one

    predictor    answers of a served model                   prediction_race  one request, and who is asked for it
    serving_view who can be asked                            prediction_wire  rows -> body, answer -> arrays

A client is a ZooKeeper client like any other; nothing here is needed to use a cluster.
"""

from zkd.client.client import Client
from zkd.client.handles import Handle

__all__ = ["Client", "Handle"]
