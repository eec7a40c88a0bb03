#!/usr/bin/env bash
# A real SLURM of one node on this machine, for the launch tests: slurm_one_node.sh start|stop.
# Needs root and Debian's slurm-wlm and munge (apt-get install slurm-wlm munge). Tried on Debian 12.
set -e
case "${1:-start}" in
stop)
  scontrol shutdown || true; sleep 1
  [ -f /run/munge/munged.pid ] && kill "$(cat /run/munge/munged.pid)" || true ;;
start)
  host=$(hostname); grep -qw "$host" /etc/hosts || echo "127.0.0.1 $host" >> /etc/hosts
  mkdir -p /etc/slurm /var/spool/slurmctld /var/spool/slurmd /run/munge /var/log/munge
  [ -f /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
  chown -R munge:munge /etc/munge /run/munge /var/log/munge /var/lib/munge; chmod 400 /etc/munge/munge.key
  cat > /etc/slurm/slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=30
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
NodeName=$host CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  su munge -s /bin/sh -c 'munged --force'; sleep 1; slurmctld; sleep 1; slurmd; sleep 3; sinfo ;;
esac
