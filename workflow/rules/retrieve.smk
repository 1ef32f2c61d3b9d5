# What is fetched: models and data sets of the hub, archives of the web, local files. The only rules with network.


rule retrieve_source:
    output:
        record=update("<results>/retrieved/{origin}-{digest}/record.json"),
    log:
        "<logs>/retrieve_source/{origin}-{digest}.log",
    localrule: True
    conda:
        "../../envs/environment.yaml"
    resources:
        execution=execution_of,
    params:
        ticket=ticket_of,
    message:
        "Retrieving {wildcards.origin}"
    shell:
        "retrieve_source.py --ticket {params.ticket:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"


# On a login node, so that compute nodes need no network: "snakemake prefetch" for the studies of config.yaml,
# "snakemake prefetch_<study>" for one.
rule prefetch:
    input:
        ancient(later(PLAN.retrievals, *DEFAULT_STUDIES)),
    localrule: True


for study in STUDIES:

    rule:
        name:
            f"prefetch_{study.name}"
        input:
            ancient(later(PLAN.retrievals, study)),
        localrule: True
