"""Every znode path is built and taken apart here, and nowhere else.

<root>/tasks/<id>              the drop box
<root>/results/<id>            one terminal result a task
<root>/dead/<id>               tasks whose attempts are used up, with their history
<root>/nodes/<node>            ephemeral: who is here
<root>/status/<node>           heartbeat
<root>/assign/<node>           what this node should work on; written by the leader only
<root>/schedules/<name>        a recurring task, as its user wrote it; never written by zkd
<root>/control/schedules/<name>  how far the leader is with it
<root>/control/epoch           its version is the leader's epoch
<root>/control/leader          ephemeral: who leads, in which epoch
<root>/control/candidates/     ephemeral sequential: who would lead next
<root>/control/nodes/<node>    a node's state as operators set it: active | draining | cordoned
<root>/control/limits/<kernel> how much of a kernel's work the cluster takes on, as operators set it
<root>/control/protocol        version of this protocol
<root>/control/token           who knows it may send data to nodes
<root>/control/ring            the nodes that keep data; written by the leader only
<root>/config                  the revision of the settings that are said for many nodes at once
<root>/config/cluster          what is said for all of them,
<root>/config/labels/<name=value>  for those that carry a label,
<root>/config/nodes/<node>     for one
<root>/config/history/<n>      what each revision changed
<root>/config/apps/<name>      a program's own configuration; below it its revisions
<root>/datasets                numbers of versions that were removed, and are not given again
<root>/datasets/<name>         the current version of a dataset
<root>/datasets/<name>/versions/<n>     manifests, immutable
<root>/datasets/<name>/chunks/<digest>  the segments of some parts, shared by manifests
<root>/datasets/<name>/writers/<id>     ephemeral: somebody is sending segments that no manifest lists yet
<root>/holdings/<name>/<node>  the parts that lie on a node, as it says
<root>/jobs/<id>               a training job, as its user wrote it; never written by zkd
<root>/control/jobs/<id>       how far it is, where its checkpoint and its model lie
<root>/control/coordinators/<id>  ephemeral: the node that opens its rounds
<root>/models/<name>           a registered model: the highest number that a version of it ever had
<root>/models/<name>/versions/<n>     its versions, immutable
<root>/models/<name>/aliases/<alias>  names that move between versions
<root>/sync/<kind>/<name>      locks, barriers, counters and the like, for programs of users
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

TaskId = str
JobId = str
NodeId = str

DEFAULT_ROOT = "/zkd"
PROTOCOL_VERSION = 1

# Ids and node names become file names, log fields and URL parts, so they are plain.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}\Z")
NAME_RULE = "1 to 128 letters, digits and _ . : -, the first a letter or digit"


def is_name(text: str) -> bool:
    return NAME.match(text) is not None


class Paths:
    """The paths below one root. `Paths("/zkd").task("a")` is ``/zkd/tasks/a``."""

    def __init__(self, root: str = DEFAULT_ROOT) -> None:
        if not re.fullmatch(r"(/[A-Za-z0-9_.:-]+)+", root) or "/." in root:
            raise ValueError(f"root: expected an absolute znode path such as {DEFAULT_ROOT}, got {root!r}")
        self.root = root
        self.tasks = f"{root}/tasks"
        self.results = f"{root}/results"
        self.dead = f"{root}/dead"
        self.nodes = f"{root}/nodes"
        self.statuses = f"{root}/status"
        self.assignments = f"{root}/assign"
        self.schedules = f"{root}/schedules"
        self.control = f"{root}/control"
        self.schedule_states = f"{root}/control/schedules"
        self.epoch = f"{root}/control/epoch"
        self.leader = f"{root}/control/leader"
        self.candidates = f"{root}/control/candidates"
        self.node_states = f"{root}/control/nodes"
        self.limits = f"{root}/control/limits"
        self.token = f"{root}/control/token"
        self.protocol = f"{root}/control/protocol"
        self.ring = f"{root}/control/ring"
        self.datasets = f"{root}/datasets"
        self.holdings = f"{root}/holdings"
        self.jobs = f"{root}/jobs"
        self.job_states = f"{root}/control/jobs"
        self.coordinators = f"{root}/control/coordinators"
        self.models = f"{root}/models"
        self.sync = f"{root}/sync"
        self.config = f"{root}/config"
        self.config_labels = f"{root}/config/labels"
        self.config_nodes = f"{root}/config/nodes"
        self.config_history = f"{root}/config/history"
        self.config_apps = f"{root}/config/apps"

    def skeleton(self) -> list[str]:
        """The persistent directories, parents first, that every daemon makes sure of."""
        parts = self.root.strip("/").split("/")
        parents = ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]
        return [
            *parents,
            self.tasks,
            self.results,
            self.dead,
            self.nodes,
            self.statuses,
            self.assignments,
            self.schedules,
            self.control,
            self.schedule_states,
            self.candidates,
            self.node_states,
            self.limits,
            self.datasets,
            self.holdings,
            self.jobs,
            self.job_states,
            self.coordinators,
            self.models,
            self.config,
            self.config_labels,
            self.config_nodes,
            self.config_history,
            self.config_apps,
        ]

    def task(self, task: TaskId) -> str:
        return f"{self.tasks}/{task}"

    def result(self, task: TaskId) -> str:
        return f"{self.results}/{task}"

    def dead_task(self, task: TaskId) -> str:
        return f"{self.dead}/{task}"

    def node(self, node: NodeId) -> str:
        return f"{self.nodes}/{node}"

    def status(self, node: NodeId) -> str:
        return f"{self.statuses}/{node}"

    def assignment(self, node: NodeId) -> str:
        return f"{self.assignments}/{node}"

    def node_state(self, node: NodeId) -> str:
        return f"{self.node_states}/{node}"

    def limit(self, kernel: str) -> str:
        return f"{self.limits}/{kernel}"

    def schedule(self, name: str) -> str:
        return f"{self.schedules}/{name}"

    def schedule_state(self, name: str) -> str:
        return f"{self.schedule_states}/{name}"

    def job(self, job: JobId) -> str:
        return f"{self.jobs}/{job}"

    def job_state(self, job: JobId) -> str:
        return f"{self.job_states}/{job}"

    def coordinator(self, job: JobId) -> str:
        return f"{self.coordinators}/{job}"

    def dataset(self, name: str) -> str:
        return f"{self.datasets}/{name}"

    def versions(self, name: str) -> str:
        return f"{self.datasets}/{name}/versions"

    def version(self, name: str, version: int) -> str:
        return f"{self.datasets}/{name}/versions/{version}"

    def chunks(self, name: str) -> str:
        return f"{self.datasets}/{name}/chunks"

    def chunk(self, name: str, digest: str) -> str:
        return f"{self.datasets}/{name}/chunks/{digest}"

    def writers(self, name: str) -> str:
        return f"{self.datasets}/{name}/writers"

    def holding(self, name: str, node: NodeId) -> str:
        return f"{self.holdings}/{name}/{node}"

    def model(self, name: str) -> str:
        return f"{self.models}/{name}"

    def model_versions(self, name: str) -> str:
        return f"{self.models}/{name}/versions"

    def model_version(self, name: str, version: int) -> str:
        return f"{self.models}/{name}/versions/{version}"

    def aliases(self, name: str) -> str:
        return f"{self.models}/{name}/aliases"

    def alias(self, name: str, alias: str) -> str:
        return f"{self.models}/{name}/aliases/{alias}"

    def recipe(self, kind: str, name: str) -> str:
        return f"{self.sync}/{kind}/{name}"

    def config_layer(self, layer: str) -> str:
        """`layer` is ``cluster``, ``nodes/<node>``, or what `label_layer` gives."""
        return f"{self.config}/{layer}"

    def config_revision(self, revision: int) -> str:
        return f"{self.config_history}/{revision}"

    def app_config(self, name: str) -> str:
        return f"{self.config_apps}/{name}"

    def app_revision(self, name: str, revision: int) -> str:
        return f"{self.config_apps}/{name}/{revision}"

    def candidate(self, node: NodeId) -> str:
        """The prefix of a sequential candidate znode; the server appends ten digits."""
        return f"{self.candidates}/{node}-"


def label_layer(name: str, value: str) -> str:
    """The layer of a label. Labels may be any text, names of znodes may not."""
    return f"labels/{quote(f'{name}={value}', safe=' =@+,:;!()')}"


def layer_title(layer: str) -> str:
    """A layer as people say it: ``cluster``, ``label gpu=yes``, ``node n1``."""
    kind, _, rest = layer.partition("/")
    return f"{kind.removesuffix('s')} {unquote(rest)}" if rest else kind


def leaf(path: str) -> str:
    """The last part of a path: the id of a task, the name of a node."""
    return path.rpartition("/")[2]


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"
