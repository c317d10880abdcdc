"""``headrace cluster``: the tree of its commands, each of which lives in a module of its own."""

import typer

from headrace.cli import cluster_config, cluster_election, cluster_recover, cluster_secret, cluster_status, tryout

app = typer.Typer(no_args_is_help=True, help="Try out a cluster, declare one, look at it, change it. Begin with: headrace cluster up")

app.command("up")(tryout.up)
app.command("apply")(cluster_config.apply)
app.command("plan")(cluster_config.plan)
app.command("status")(cluster_status.status)
app.command("members")(cluster_status.members)
app.command("recover")(cluster_recover.recover)
app.command("force-election")(cluster_election.force_election)
app.add_typer(cluster_config.voter, name="voter")
app.add_typer(cluster_secret.app, name="secret")
