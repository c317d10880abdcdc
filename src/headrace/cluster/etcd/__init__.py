"""The coordinator of a cluster: an etcd client over gRPC, and etcd itself as a supervised child of brokers that vote. ``calls`` and what
imports it need gRPC and are imported in coordinated mode only."""
