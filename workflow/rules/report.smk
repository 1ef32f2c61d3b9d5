# Pages, and the targets by which studies are asked for: "snakemake <study>".

for study in filter(lambda study: study.report, STUDIES):

    rule:
        name:
            f"build_report_{study.name}"
        input:
            ancient(PLAN.marker(study.tabulate)),
            ancient(PLAN.marker(study.plot)),
        output:
            html=update(f"<results>/report/{study.name}.html"),
            marker=update(PLAN.marker(study.report)),
        log:
            f"<logs>/build_report/{study.name}.log",
        localrule: True
        conda:
            "../../envs/environment.yaml"
        resources:
            execution=PLAN.execution(study.report),
        params:
            ticket=PLAN.ticket_file(study.report),
        message:
            f"Building the page of {study.name}"
        shell:
            "build_report.py --ticket {params.ticket:q} --output {output.marker:q}"
            " --execution {resources.execution:q} --log {log:q}"


for study in STUDIES:

    rule:
        name:
            study.name
        input:
            ancient(later(PLAN.targets, study)),
        localrule: True


# Groups of studies: "snakemake paper" makes every table and figure of the paper.
for group in sorted({study.group for study in STUDIES if study.group}):
    members = [study for study in STUDIES if study.group == group]

    rule:
        name:
            group
        input:
            ancient(later(PLAN.targets, *members)),
        localrule: True

    rule:
        name:
            f"prefetch_{group}"
        input:
            ancient(later(PLAN.retrievals, *members)),
        localrule: True
